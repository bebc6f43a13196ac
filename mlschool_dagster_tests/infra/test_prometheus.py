"""A real Prometheus reads a real server by the configuration that the compose file mounts."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.serving.server import Server, free_port, running_server, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW

CONFIG = ROOT / "infra" / "docker" / "prometheus.yml"
TOKEN = "a-token-for-nothing-but-tests"  # noqa: S105

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="Prometheus is not installed (Debian: apt-get install prometheus)",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with two workers."""
    home = tmp_path_factory.mktemp("home")
    with running_server(home, workers=2, token=TOKEN) as server:
        wait_for(lambda: server.client.get("/ping").is_success)
        yield server


def config_for(server: Server, folder: Path, token: str = TOKEN) -> Path:
    (folder / "token").write_text(token)
    url = server.client.base_url
    text = CONFIG.read_text(encoding="utf-8")
    for there, here in {
        "endpoint:8080": f"{url.host}:{url.port}",
        "/run/secrets/endpoint_token": str(folder / "token"),
        "/etc/prometheus/rules.yml": str(ROOT / "infra" / "dashboards" / "rules.yml"),
    }.items():
        assert there in text
        text = text.replace(there, here)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


@contextmanager
def prometheus(config: Path) -> Iterator[httpx.Client]:
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("prometheus", f"--config.file={config}", f"--web.listen-address={address}"),
        f"--storage.tsdb.path={config.parent / 'data'}",
    ]
    with (config.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1") as client:
            yield client
    finally:
        process.kill()
        process.wait()


def asked(client: httpx.Client, query: str) -> dict[tuple[str, ...], float]:
    """The answer to `query`: values by the labels that it groups by, in their order."""
    try:
        answer = client.get("/query", params={"query": query})
    except httpx.TransportError:
        return {}
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # It listens before it is ready.
        return {}
    return {
        tuple(label for _, label in sorted(series["metric"].items())): float(series["value"][1])
        for series in answer.json().get("data", {}).get("result", [])
    }


def test_the_configuration_is_one(server: Server, tmp_path: Path) -> None:
    command = ["promtool", "check", "config", str(config_for(server, tmp_path))]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_metrics_keep_to_the_conventions(server: Server) -> None:
    server.invoke([ROW])
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=server.client.get("/metrics").content,
        capture_output=True,
    )
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()


def test_prometheus_counts_what_was_sent(server: Server, tmp_path: Path) -> None:
    by_status = "sum by (status) (mlschool_requests_total)"
    by_reason = "sum(mlschool_refusals_total)"
    with prometheus(config_for(server, tmp_path)) as client:
        wait_for(lambda: asked(client, "up") != {})
        wait_for(lambda: asked(client, "sum(mlschool_model_age_seconds > 0)") != {})
        before = asked(client, by_status), asked(client, by_reason).get((), 0.0)
        predictions = asked(client, "sum(mlschool_predictions_total)").get((), 0.0)
        for _ in range(40):
            assert server.invoke([ROW, ROW]).status_code == 200
        for _ in range(5):
            assert server.invoke([{**ROW, "island": "unheard of"}]).status_code == 422
        expected = {
            ("200",): before[0].get(("200",), 0.0) + 40,
            ("422",): before[0].get(("422",), 0.0) + 5,
        }
        wait_for(lambda: asked(client, by_status) == expected)
        assert asked(client, by_reason) == {(): before[1] + 5}
        assert asked(client, "sum(mlschool_predictions_total)") == {(): predictions + 80}
        serving = asked(client, "sum by (role, version) (mlschool_model_info)")
        assert serving == {("primary", "1"): 1.0}
        assert asked(client, 'sum(mlschool_endpoint_info{endpoint="penguins"})') == {(): 1.0}
        bucket = 'mlschool_request_duration_seconds_bucket{role="primary"}'
        p99 = asked(client, f"histogram_quantile(0.99, sum by (le) ({bucket}))")
        assert 0.0 < p99[()] < 10.0


def test_prometheus_needs_the_token(server: Server, tmp_path: Path) -> None:
    config = config_for(server, tmp_path, token="some-other-token-than-that")  # noqa: S106
    with prometheus(config) as client:
        wait_for(lambda: set(asked(client, "max(up)").values()) == {0.0})
