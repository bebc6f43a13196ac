"""The platform's processes: MLflow server, Dagster's UI and daemon, a server for report files."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import yaml

from mlschool_dagster.atomic import replacing
from mlschool_dagster.local.processes import (
    Identity,
    Service,
    free_port,
    stop_tree,
)
from mlschool_dagster.modeling.spec import load_spec
from mlschool_dagster.serving.process import ServerConfig
from mlschool_dagster.settings import ROOT, Settings
from mlschool_dagster.targets.local import LocalTarget

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform: its addresses, and the environment in which commands reach it."""

    dagster_url: str
    mlflow_url: str
    files_url: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Registered:
    """What the state folder remembers of a running platform: its owner and its children."""

    owner: Identity
    children: list[Identity]
    platform: Platform

    @classmethod
    def load(cls, path: Path) -> "Registered | None":
        """The platform written at `path`, if any."""
        if not path.exists():
            return None
        document: dict[str, Any] = orjson.loads(path.read_bytes())
        return cls(
            Identity(**document["owner"]),
            [Identity(**child) for child in document["children"]],
            Platform(**document["platform"]),
        )

    def save(self, path: Path) -> None:
        """Write the platform to `path`."""
        with replacing(path) as temporary:
            temporary.write_bytes(orjson.dumps(asdict(self)))


@contextmanager
def running_platform(settings: Settings, say: Say) -> Iterator[Platform]:
    """The platform that runs on this state folder already, else one that lives with the block.

    What a killed owner left behind is stopped first.

    Raises:
        UserError: a part does not start.
    """
    record = settings.home / "platform.json"
    known = Registered.load(record)
    if known and known.owner.find():
        say(f"using the platform that already runs: {known.platform.dagster_url}")
        yield known.platform
        return
    if known:
        _stop(known.children, settings)
    services: list[Service] = []
    try:
        platform = _start(settings, services, record, say)
        yield platform
    finally:
        say("stopping what was started")
        _stop([service.identity for service in services], settings)
        record.unlink(missing_ok=True)


def stop_leftovers(settings: Settings) -> None:
    """Stop every process that belongs to this state folder."""
    record = settings.home / "platform.json"
    known = Registered.load(record)
    if known:
        _stop([known.owner, *known.children], settings)
        record.unlink(missing_ok=True)
    elif settings.home.exists():
        local_endpoint(settings).stop()


def _stop(children: list[Identity], settings: Settings) -> None:
    with ThreadPoolExecutor() as threads:
        list(threads.map(stop_tree, children))
    local_endpoint(settings).stop()


def prepare(settings: Settings) -> dict[str, str]:
    """Create the state folder and the Dagster instance in it.

    Returns:
        The environment in which every command of the platform finds its state.
    """
    settings.make_home()
    instance = settings.home / "dagster"
    instance.mkdir(parents=True, exist_ok=True)
    document = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    for located_by_home in ("storage", "local_artifact_storage", "compute_logs"):
        del document[located_by_home]
    with replacing(instance / "dagster.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(document), encoding="utf-8")
    return {"MLSCHOOL_HOME": str(settings.home), "DAGSTER_HOME": str(instance)}


def local_endpoint(settings: Settings) -> LocalTarget:
    """The inference server that belongs to this state folder."""
    return LocalTarget(
        ServerConfig(
            home=settings.home / "endpoint",
            store_uri=settings.capture_store,
            name=load_spec(settings.spec).name,
            host=settings.endpoint_host,
            port=settings.endpoint_port,
            workers=settings.endpoint_workers,
            spill_bytes=settings.spill_bytes,
            token=settings.endpoint_token or None,
        ),
        settings.endpoint_url or None,
    )


def _start(settings: Settings, services: list[Service], record: Path, say: Say) -> Platform:
    environment = prepare(settings)
    ports = _choose_ports(settings, say)
    files_url = f"http://127.0.0.1:{ports['report files']}"
    dagster_url = f"http://127.0.0.1:{ports['Dagster']}"
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports['MLflow']}")
    environment |= {
        # MLflow would start four more processes for jobs that nothing here asks for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLSCHOOL_ENDPOINT_PORT": str(ports["endpoint"]),
        "MLSCHOOL_FILES_URL": files_url,
        "MLSCHOOL_DAGSTER_URL": dagster_url,
    }
    platform = Platform(dagster_url, tracking_uri, files_url, environment)
    settings.files.mkdir(parents=True, exist_ok=True)
    commands = {
        "Dagster": _dagster_command(ports["Dagster"]),
        "report files": _files_command(settings, ports["report files"]),
    }
    if "MLFLOW_TRACKING_URI" not in os.environ:
        commands["MLflow"] = _mlflow_command(settings, ports["MLflow"])
    for name, command in commands.items():
        say(f"starting {name}")
        log = settings.home / "logs" / f"{name.lower().replace(' ', '-')}.log"
        services.append(Service.start(name, command, environment, log))
        # Written after each start, so that nothing is forgotten if this process is killed.
        children = [service.identity for service in services]
        Registered(Identity.of(os.getpid()), children, platform).save(record)
    for service in services:
        service.wait_until(partial(_answers, f"http://127.0.0.1:{ports[service.name]}"))
    return platform


def _choose_ports(settings: Settings, say: Say) -> dict[str, int]:
    """A free port for each server; the one of an endpoint that already runs is kept."""
    running = local_endpoint(settings).status()
    preferred = {"Dagster": 3000, "MLflow": 5000, "report files": 8090}
    chosen: dict[str, int] = {}
    if running:
        chosen["endpoint"] = settings.endpoint_port
    else:
        preferred["endpoint"] = settings.endpoint_port
    for name, port in preferred.items():
        chosen[name] = free_port(port, avoid=list(chosen.values()))
        if chosen[name] != port:
            say(f"port {port} is taken by another program; {name} uses {chosen[name]}")
    return chosen


def _dagster_command(port: int) -> list[str]:
    return [
        sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port),
        "--workspace", str(ROOT / "workspace.yaml"), "--log-level", "warning",
    ]  # fmt: skip


def _mlflow_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", settings.tracking_uri,
        "--default-artifact-root", str(settings.home / "mlartifacts"), "--no-serve-artifacts",
    ]  # fmt: skip


def _files_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1",
        "--directory", str(settings.files),
    ]  # fmt: skip


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
