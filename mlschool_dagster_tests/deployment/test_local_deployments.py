"""What a server on this machine makes of deployments, with workers killed and deployers dying."""

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.deployment.endpoint import Invoke, VersionFiles
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.deployment.local_endpoints import (
    another,
    deploy,
    deploy_files,
    endpoint_of,
    served,
    spoil,
    version_files,
)
from mlschool_dagster_tests.serving.server import (
    free_port,
    running_server,
    server_config,
    store_uri,
    wait_for,
    workers_of,
)
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model


def test_a_version_without_sense_is_refused_by_the_server(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    deploy(endpoint, tmp_path, "1")
    senseless = version_files(tmp_path, "2")
    spoil(senseless["2"])
    with pytest.raises(UserError, match=r"cannot serve version 2.*no probabilities"):
        deploy_files(endpoint, senseless)
    assert endpoint.invoke([ROW])[0].model_version == "1"


@pytest.mark.slow
def test_what_serves_comes_back_with_a_restarted_server(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    """A failed deployment leaves nothing behind that a restart would stumble over."""
    pid = deploy(endpoint, tmp_path, "1")
    with pytest.raises(UserError):
        deploy_files(endpoint, {"2": VersionFiles.of(tmp_path / "nowhere")})
    since = served(endpoint).since
    os.kill(pid, signal.SIGKILL)
    with running_server(tmp_path, version=None) as again:
        assert again.invoke([ROW]).json()["model_version"] == "1"
        assert datetime.fromisoformat(again.client.get("/version").json()["since"]) == since


@pytest.mark.slow
def test_a_deployer_that_dies_leaves_what_served(
    endpoint: LocalEndpoint, port: int, tmp_path: Path
) -> None:
    deploy(endpoint, tmp_path, "1")
    code = f"""
import os, signal
from pathlib import Path
from mlschool_dagster_tests.deployment.local_endpoints import deploy, endpoint_of
home = Path({str(tmp_path)!r})
die = lambda version, invoke: os.kill(os.getpid(), signal.SIGKILL)
deploy(endpoint_of(home, {port}), home, "2", die)
"""
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert endpoint.invoke([ROW])[0].model_version == "1"
    endpoint.stop()
    with running_server(tmp_path, version=None) as rebooted:
        assert rebooted.invoke([ROW]).json()["model_version"] == "1"
    deploy(endpoint, tmp_path, "2")
    assert endpoint.invoke([ROW])[0].model_version == "2"


def test_every_worker_serves_what_was_deployed(tmp_path: Path) -> None:
    endpoint = endpoint_of(tmp_path, free_port(), workers=2)
    # Each new connection may meet another worker.
    with httpx.Client(base_url=endpoint.config.url, headers={"Connection": "close"}) as client:
        try:
            for version in ("1", "2", "1"):
                deploy(endpoint, tmp_path, version)
                answers = [client.post("/invocations", json={"inputs": [ROW]}) for _ in range(20)]
                assert {answer.json()["model_version"] for answer in answers} == {version}
            assert served(endpoint).details["workers"] == 2
        finally:
            endpoint.stop()


def test_a_shadow_is_captured_beside_each_answer(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    plan = Plan(primary="1", shadow="2", shadow_share=1.0)
    endpoint.deploy(plan, version_files(tmp_path, "1", "2"))
    rows = [{**ROW, "body_mass_g": 3000 + 100 * i} for i in range(10)]
    answers = [endpoint.invoke([row], f"event-{i}")[0] for i, row in enumerate(rows)]
    assert {answer.model_version for answer in answers} == {"1"}
    store = open_store(endpoint.config.store_uri)

    def shadows() -> dict[str, dict[str, float]]:
        frames = [store.read_shadow(window) for window in store.windows()]
        result = [row for frame in frames for row in frame.to_dict("records")]
        assert {row["model_version"] for row in result} <= {"2"}
        return {row["event_id"]: row["probabilities"] for row in result}

    wait_for(lambda: len(shadows()) == len(rows))
    beside = shadows()
    for answer, shares in zip(answers, tiny_model(2).probabilities(rows), strict=True):
        assert list(beside[answer.event_id].values()) == pytest.approx(list(shares))
    store.close()


@pytest.mark.slow
def test_a_worker_killed_under_way_does_not_stop_a_deployment(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    pid = deploy(endpoint, tmp_path, "1")

    def verify(version: str, invoke: Invoke) -> None:
        for worker in workers_of(pid):
            worker.kill()

    assert deploy(endpoint, tmp_path, "2", verify) == pid
    assert endpoint.invoke([ROW])[0].model_version == "2"


def test_a_server_that_is_kept_by_others_follows_and_is_left_alone(tmp_path: Path) -> None:
    with running_server(tmp_path, version=None) as server:
        config = server_config(tmp_path, server.store_uri)
        endpoint = LocalEndpoint(config, str(server.client.base_url))
        assert endpoint.status().serving is None
        for version in ("1", "2"):
            endpoint.deploy(Plan(primary=version), version_files(tmp_path, version))
            assert server.invoke([ROW]).json()["model_version"] == version
        assert served(endpoint).url == str(server.client.base_url)
        senseless = version_files(tmp_path, "3")
        spoil(senseless["3"])
        with pytest.raises(UserError, match="cannot serve version 3"):
            deploy_files(endpoint, senseless)
        endpoint.stop()
        assert server.invoke([ROW]).json()["model_version"] == "2"
    assert endpoint.status().serving is None


def test_a_server_of_others_that_does_not_follow_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlschool_dagster.deployment.local.DEADLINE_SECONDS", 0.2)
    endpoint = LocalEndpoint(
        server_config(tmp_path, store_uri(tmp_path)), f"http://127.0.0.1:{free_port()}"
    )
    with pytest.raises(UserError, match="make sure that its server runs with the home folder"):
        deploy(endpoint, tmp_path, "1")


def test_it_presents_its_token_and_shows_it_to_nobody(tmp_path: Path) -> None:
    endpoint = endpoint_of(tmp_path, free_port(), token="open-sesame-0123456789-abcdefghij")  # noqa: S106
    try:
        pid = deploy(endpoint, tmp_path, "1")
        assert endpoint.invoke([ROW])[0].model_version == "1"
        with pytest.raises(UserError):
            another(endpoint, token=None).invoke([ROW])
        written = [path.read_text() for path in tmp_path.glob("*.json*")]
        processes = [psutil.Process(pid), *psutil.Process(pid).children()]
        written += [" ".join(process.cmdline()) for process in processes]
        assert not any(
            "open-sesame-0123456789-abcdefghij" in text
            for text in (*written, endpoint.log.read_text())
        )
    finally:
        endpoint.stop()


def test_deployments_at_once_take_turns(endpoint: LocalEndpoint, port: int, tmp_path: Path) -> None:
    others = [endpoint, *(endpoint_of(tmp_path, port) for _ in range(2))]
    outcomes: list[int] = []
    threads = [
        threading.Thread(target=lambda o=other, v=version: outcomes.append(deploy(o, tmp_path, v)))
        for other, version in zip(others, "123", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert len(set(outcomes)) == 1


def test_it_is_small_and_quick_to_start(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    supervisor = psutil.Process(deploy(endpoint, tmp_path, "1"))
    processes = [supervisor, *supervisor.children(recursive=True)]
    seconds = [sum(process.cpu_times()[:2]) for process in processes]
    assert sum(seconds) < 5
    assert sum(process.memory_info().rss for process in processes) < 300e6


def test_it_takes_no_detour_through_a_proxy(
    endpoint: LocalEndpoint, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    deploy(endpoint_of(tmp_path, port), tmp_path, "1")
