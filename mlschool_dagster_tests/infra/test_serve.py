"""``serve``, the entry point of the server's image, as a process."""

import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pytest

import mlschool_dagster
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.serving.server import answers, end, free_port, serve, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW

SERVE = ROOT / "infra" / "docker" / "serve"
TOKEN = "a-token-for-nothing-but-tests"  # noqa: S105
GRACE_SECONDS = 30.0

Process = subprocess.Popen[bytes]


def settings_at(home: Path, port: int) -> dict[str, str]:
    """The whole environment of a container, but for the address."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "MLSCHOOL_HOME": str(home),
        "MLSCHOOL_ENDPOINT_NAME": "penguins",
        "MLSCHOOL_ENDPOINT_HOST": "127.0.0.1",
        "MLSCHOOL_ENDPOINT_PORT": str(port),
        "MLSCHOOL_ENDPOINT_TOKEN": TOKEN,
        "MLSCHOOL_CAPTURE_STORE": f"sqlite:///{home}/captures.db",
    }


@contextmanager
def serving(home: Path, **changes: str) -> Iterator[tuple[Process, httpx.Client]]:
    """The server that ``serve`` starts, with a version deployed, and a client of it."""
    (home / "endpoint").mkdir(parents=True)
    serve(home / "endpoint", "1")
    port = free_port()
    environment = settings_at(home, port) | changes
    process = subprocess.Popen([str(SERVE)], env=environment, cwd=home)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}
    ) as client:
        try:
            wait_for(lambda: answers(client) and client.get("/ping").is_success, process)
            yield process, client
        finally:
            end(process)


def refusal(environment: Mapping[str, str], tmp_path: Path) -> str:
    finished = subprocess.run(
        [str(SERVE)],
        env={name: value for name, value in environment.items() if value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=GRACE_SECONDS,
    )
    assert finished.returncode != 0
    return finished.stderr


def test_it_serves_by_its_environment_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as (_, client):
        assert client.get("/ping", headers={"Authorization": ""}).status_code == 200
        assert client.post("/invocations", json={"inputs": [ROW]}).status_code == 200
        unknown = client.post(
            "/invocations", json={"inputs": [ROW]}, headers={"Authorization": "Bearer no"}
        )
        assert unknown.status_code == 401


def test_it_does_not_open_to_the_network_without_a_token(tmp_path: Path) -> None:
    environment = settings_at(tmp_path, free_port()) | {
        "MLSCHOOL_ENDPOINT_HOST": "",
        "MLSCHOOL_ENDPOINT_TOKEN": "",
    }
    assert "MLSCHOOL_ENDPOINT_TOKEN" in refusal(environment, tmp_path)


@pytest.mark.parametrize("variable", ["MLSCHOOL_ENDPOINT_NAME", "MLSCHOOL_CAPTURE_STORE"])
def test_it_says_what_is_missing(variable: str, tmp_path: Path) -> None:
    environment = settings_at(tmp_path, free_port()) | {variable: ""}
    stderr = refusal(environment, tmp_path)
    assert variable in stderr or "--store" in stderr


def test_sigterm_lets_a_request_under_way_finish(tmp_path: Path) -> None:
    home = tmp_path / "home"
    body = orjson.dumps({"inputs": [ROW]})
    head = (
        "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {TOKEN}\r\nX-Amzn-SageMaker-Inference-Id: last-one\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with serving(home) as (process, client):
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, GRACE_SECONDS) as connection:
            connection.sendall(head + body[:10])
            # An answer to a later request shows that the first one has been read.
            assert client.get("/ping").is_success
            process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            wait_for(lambda: not accepts(address))
            connection.sendall(body[10:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(GRACE_SECONDS) == 0
        assert time.monotonic() - told < GRACE_SECONDS
    store = open_store(f"sqlite:///{home}/captures.db")
    assert [capture.event_id for capture in store.unlabelled()] == ["last-one"]
    store.close()


def accepts(address: tuple[str, int]) -> bool:
    """Whether a new request is still taken at `address`."""
    try:
        with socket.create_connection(address, 1.0) as connection:
            connection.settimeout(0.2)
            connection.sendall(
                b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            return connection.recv(1) != b""
    except OSError:
        return False


@pytest.mark.slow
def test_the_packages_of_the_image_are_all_that_the_server_imports(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    venv.create(packages, with_pip=True)
    subprocess.run(
        [
            *(packages / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--requirement"),
            ROOT / "infra" / "docker" / "requirements-serving.lock",
        ],
        check=True,
    )
    code = tmp_path / "code"
    code.mkdir()
    (code / "mlschool_dagster").symlink_to(Path(mlschool_dagster.__file__).parent)
    changes = {
        "PATH": f"{packages / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(code),
        # Nothing listens there: captures wait in the write-ahead log, by way of the drivers.
        "MLSCHOOL_CAPTURE_STORE": f"postgresql://user:password@127.0.0.1:{free_port()}/captures",
    }
    with serving(tmp_path / "home", **changes) as (_, client):
        for path in ("/ping", "/health", "/version", "/metrics", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200, path
        csv = ",".join(ROW) + "\n" + ",".join(str(value) for value in ROW.values()) + "\n"
        headers = {"Content-Type": "text/csv"}
        assert client.post("/invocations", json={"inputs": [ROW]}).status_code == 200
        assert client.post("/invocations", content=csv, headers=headers).status_code == 200
