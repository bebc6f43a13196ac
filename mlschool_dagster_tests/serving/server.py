"""Real server processes to talk to."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.serving.deployment import Deployment, Release, write_deployment
from mlschool_dagster.values import InputValue
from mlschool_dagster_tests.serving.tiny_model import tiny_model

PATIENCE = 30.0


@dataclass
class Server:
    """A running server, its home, and a client that talks to it."""

    home: Path
    process: "subprocess.Popen[bytes]"
    client: httpx.Client

    @property
    def store_uri(self) -> str:
        return store_uri(self.home)

    @property
    def log(self) -> str:
        return (self.home / "server.log").read_text(encoding="utf-8")

    def invoke(self, rows: Sequence[Mapping[str, InputValue]], **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/invocations", json={"inputs": list(rows)}, headers=names)

    def health(self) -> dict[str, Any]:
        return dict(self.client.get("/health").json())

    def captures(self) -> list[Capture]:
        store = open_store(self.store_uri)
        found = list(store.unlabelled())
        store.close()
        return found


def store_uri(home: Path) -> str:
    return f"sqlite:///{home / 'captures.db'}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def release(home: Path, version: str) -> Release:
    """A version in `home` with weights drawn from its number."""
    folder = home / "versions" / version
    tiny_model(int(version)).save(folder)
    return Release(version, folder)


@contextmanager
def running_server(home: Path, version: str | None = "1") -> Iterator[Server]:
    """A server that serves `version`, or nothing if it is None."""
    if version is not None:
        write_deployment(home, Deployment(release(home, version)))
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlschool_dagster.serving", "--home", str(home)),
        *("--port", str(port), "--store", store_uri(home), "--name", "penguins"),
    ]
    with (home / "server.log").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
        try:
            wait_for(lambda: answers(client), process)
            yield Server(home, process, client)
        finally:
            process.kill()
            process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def wait_for(condition: Any, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Poll until `condition()` holds; fail if `process` ends or patience does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.02)
