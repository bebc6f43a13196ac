"""The servers that are compared, as processes, and the model that two of them share."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from load import Load, apply_load, body_of, cpu_seconds

from benchmarks.environments import python_with

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PEERS = HERE / "peers"
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    process: psutil.Process
    port: int
    cpu_seconds_to_ready: float

    def load(self, body: str, seconds: int, connections: int, rate: float = 0.0) -> Load:
        """See `apply_load`."""
        url = f"http://127.0.0.1:{self.port}/invocations"
        return apply_load(url, self.process, body, seconds, connections, rate)

    def memory_mb(self) -> float:
        """Resident memory of the largest of the server's processes."""
        processes = (self.process, *self.process.children(recursive=True))
        return max(p.memory_info().rss for p in processes) / 1024**2


def trained_platform(home: Path) -> Path:
    """A state folder with one registered version."""
    _run(
        [
            sys.executable,
            "-m",
            "dagster",
            "job",
            "execute",
            "-m",
            "mlschool_dagster.definitions",
            "-j",
            "training_job",
        ],
        home,
    )
    return home


def peer_model(folder: Path, home: Path) -> str:
    """The path of the ordinary pyfunc of the network that is registered in `home`."""
    _run([sys.executable, str(HERE / "peer.py"), str(folder)], home)
    return str(folder)


@contextmanager
def echo(folder: Path) -> Iterator[Served]:
    """The bare echo."""
    port = _free_port()
    command = [sys.executable, str(HERE / "echo.py"), str(port)]
    with _served(command, port, folder / "echo.log", folder) as served:
        yield served


@contextmanager
def endpoint(folder: Path, home: Path) -> Iterator[Served]:
    """The platform's endpoint, serving the version that is registered in `home`."""
    from mlschool_dagster.capture.records import Role
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.serving.desired_state import (
        DesiredState,
        VersionFolder,
        write_desired_state,
    )

    release = Registry(f"sqlite:///{home}/mlflow.db", "penguins").fetch(
        "challenger", folder / "versions"
    )
    desired = DesiredState({Role.PRIMARY: VersionFolder("1", release)})
    write_desired_state(folder / "endpoint", desired)
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlschool_dagster.serving", "--home", str(folder / "endpoint")),
        *("--store", f"sqlite:///{folder}/captures.db", "--name", "penguins"),
        *("--port", str(port)),
    ]
    with _served(command, port, folder / "endpoint.log", home) as served:
        yield served


@contextmanager
def mlflow_models(model: str, folder: Path, home: Path) -> Iterator[Served]:
    """``mlflow models serve`` with one worker."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", model),
        *("--env-manager", "local", "-p", str(port), "-w", "1"),
    ]
    with _served(command, port, folder / f"mlflow-{port}.log", home) as served:
        yield served


def fastapi(folder: Path, home: Path) -> AbstractContextManager[Served]:
    """FastAPI with pydantic's validation, in one process."""
    return _in_environment("fastapi", ["fastapi", "uvicorn"], folder, home)


def litserve(folder: Path, home: Path) -> AbstractContextManager[Served]:
    """LitServe with one worker."""
    return _in_environment("litserve", ["litserve"], folder, home)


def bentoml(folder: Path, home: Path) -> AbstractContextManager[Served]:
    """BentoML with one worker."""
    return _in_environment("bentoml", ["bentoml"], folder, home)


@contextmanager
def _in_environment(name: str, packages: list[str], folder: Path, home: Path) -> Iterator[Served]:
    """A peer that answers by the arithmetic of the version registered in `home`.

    Its packages are in an environment of its own, with the versions that it asks for.
    """
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.modeling.version_folder import CODE, copy_modules

    version = Registry(f"sqlite:///{home}/mlflow.db", "penguins").fetch(
        "challenger", folder / "versions"
    )
    copy_modules(CODE, version / "code_of_version")
    needed = ("numpy", "orjson", "pydantic", "pyyaml")
    python = python_with(name, *needed, *packages, constrained=False)
    port = _free_port()
    command = (
        [
            *(str(python.with_name("bentoml")), "serve", "bentoml_server:Penguins"),
            *("--working-dir", str(PEERS), "--port", str(port), "--host", "127.0.0.1"),
        ]
        if name == "bentoml"
        else [str(python), str(PEERS / f"{name}_server.py"), str(port)]
    )
    more = {"PEER_MODEL": str(version), "BENTOML_DO_NOT_TRACK": "True"}
    with _served(command, port, folder / f"{name}.log", home, more) as served:
        yield served


@contextmanager
def _served(
    command: list[str], port: int, log: Path, home: Path, more: Mapping[str, str] | None = None
) -> Iterator[Served]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**_environment(home), **(more or {})},
            cwd=ROOT,
        )
    process = psutil.Process(started.pid)
    try:
        _wait_until_ready(port, started, log)
        yield Served(process, port, cpu_seconds(process))
    finally:
        if started.poll() is None:
            family = [process, *process.children(recursive=True)]
            for member in family:
                member.terminate()
            psutil.wait_procs(family, timeout=20)


def _wait_until_ready(port: int, started: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    headers = {"Content-Type": "application/json"}
    while time.monotonic() < deadline and started.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/invocations"
            if httpx.post(url, content=body_of(1), headers=headers, timeout=60).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{' '.join(started.args)} does not answer:\n{log.read_text()}")


def _run(command: list[str], home: Path) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(home), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def _environment(home: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    return {
        **inherited,
        # MLflow starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KERAS_BACKEND": "jax",
        "MLSCHOOL_HOME": str(home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
