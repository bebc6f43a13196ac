"""Real server processes to talk to."""

import os
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
import psutil

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.serving.desired_state import (
    DesiredState,
    VersionFolder,
    write_desired_state,
)
from mlschool_dagster.serving.protocol import Limits
from mlschool_dagster.serving.server_config import STORE_VARIABLE, TOKEN_VARIABLE, ServerConfig
from mlschool_dagster_tests.serving.tiny_model import tiny_model

TIMEOUT = 30.0
LIMITS = Limits(connections=512, keep_alive_seconds=620, preconnect_seconds=620)
"""Of a server with the defaults of the settings."""


def server_config(home: Path, store_uri: str, **changes: Any) -> ServerConfig:
    """The config of a server named penguins, with the defaults of the settings."""
    settings: dict[str, Any] = {
        "name": "penguins",
        "host": "127.0.0.1",
        "port": 8080,
        "workers": 1,
        "spill_bytes": 256 * 1024**2,
        "hosts": (),
        "connections": 512,
        "keep_alive_seconds": 620,
        "preconnect_seconds": 620,
    }
    return ServerConfig(home=home, store_uri=store_uri, **settings | changes)


@dataclass
class Server:
    """A running server, its home, and a client that talks to it."""

    home: Path
    process: "subprocess.Popen[bytes]"
    client: httpx.Client
    store_uri: str

    @property
    def log(self) -> str:
        return (self.home / "server.log").read_text(encoding="utf-8")

    @property
    def workers(self) -> list[psutil.Process]:
        return workers_of(self.process.pid)

    def invoke(self, rows: Sequence[Mapping[str, InputValue]], **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/invocations", json={"inputs": list(rows)}, headers=names)

    def health(self) -> dict[str, Any]:
        return dict(self.client.get("/health").json())

    def captures(self) -> list[Capture]:
        store = open_store(self.store_uri)
        result = list(store.unlabelled())
        store.close()
        return result


def store_uri(home: Path) -> str:
    return f"sqlite:///{home / 'captures.db'}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def release(home: Path, version: str) -> VersionFolder:
    """A version in `home` with weights drawn from its number."""
    folder = home / "versions" / version
    tiny_model(int(version)).save(folder)
    return VersionFolder(version, folder)


def serve(home: Path, version: str) -> None:
    """Let the server of `home` serve `version`, untested."""
    write_desired_state(home, DesiredState({Role.PRIMARY: release(home, version)}))


def workers_of(supervisor: int) -> list[psutil.Process]:
    """The living processes that answer for the server `supervisor`."""
    return [child for child in psutil.Process(supervisor).children() if _is_worker(child)]


def _is_worker(child: psutil.Process) -> bool:
    try:
        return "resource_tracker" not in " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running_server(
    home: Path,
    version: str | None = "1",
    *,
    store: str | None = None,
    workers: int = 1,
    token: str | None = None,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """A server that serves `version`, or what `home` says if it is None."""
    if version is not None:
        serve(home, version)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlschool_dagster.serving", "--home", str(home)),
        *("--port", str(port), "--name", "penguins", "--workers", str(workers), *options),
    ]
    secrets = {STORE_VARIABLE: store or store_uri(home), TOKEN_VARIABLE: token or ""}
    with (home / "server.log").open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **secrets}, stdout=output, stderr=output
        )
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT) as client:
        try:
            wait_for(lambda: answers(client), process)
            yield Server(home, process, client, store or store_uri(home))
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the server `process`, and wait until its workers have ended, too."""
    workers = [] if process.poll() is not None else workers_of(process.pid)
    process.kill()
    process.wait()
    psutil.wait_procs(workers, timeout=TIMEOUT)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ping").status_code in (200, 503)
    except httpx.TransportError:
        return False


def wait_for(condition: Any, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Poll until `condition()` holds; fail if `process` ends or the timeout passes."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.02)


def peak_memory(process: psutil.Process) -> float:
    """Peak memory of `process` in bytes; its present memory where the system reports no peak."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    return float(process.memory_info().rss)
