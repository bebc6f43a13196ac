"""The platform's processes: MLflow, Dagster's code server, UI and daemon, a server for reports.

Each is started again if it ends by itself.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from mlschool_dagster.atomic import replacing
from mlschool_dagster.credentials import environment_of_child, public_uri, scrub
from mlschool_dagster.dagster_internals import DAEMON
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.errors import UserError
from mlschool_dagster.identity import Identity
from mlschool_dagster.local.processes import (
    Service,
    claimed_port,
    kept_running,
    stop_tree,
)
from mlschool_dagster.serving.server_config import ServerConfig
from mlschool_dagster.settings import PLATFORM_RECORD, ROOT, Settings
from mlschool_dagster.storage import is_remote

if TYPE_CHECKING:
    from filelock import BaseFileLock

Say = Callable[[str], None]

PORTS = MappingProxyType({"Dagster": 3000, "MLflow": 5000, "report files": 8090})
"""Preferred ports of the servers."""
_WHOSE = "MLSCHOOL_HOME"
NEEDED = MappingProxyType(
    {"report files": (_WHOSE, "MLSCHOOL_HOSTS"), "MLflow": (_WHOSE, "MLFLOW_*")}
)
"""The variables that a server gets beside those that Python needs; one not named here gets all."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform: its addresses, and the environment in which commands reach it."""

    dagster_url: str
    mlflow_url: str
    files_url: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Registered:
    """Record of a running platform in its state folder: its owner and its children."""

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
        """Write the platform to `path`, without the settings that hold a secret."""
        shown = {n: v for n, v in self.platform.environment.items() if scrub(v) == v}
        url = public_uri(self.platform.mlflow_url)
        platform = replace(self.platform, mlflow_url=url, environment=shown)
        with replacing(path) as temporary:
            temporary.write_bytes(orjson.dumps(asdict(replace(self, platform=platform))))


@contextmanager
def running_platform(settings: Settings, say: Say) -> Iterator[Platform]:
    """The platform that runs on this state folder already, else one that lives with the block.

    What a killed owner left behind is stopped first.

    Raises:
        UserError: a part does not start.
    """
    record = settings.home / PLATFORM_RECORD
    known = Registered.load(record)
    if known and known.owner.find():
        if "MLFLOW_TRACKING_URI" not in {**known.platform.environment, **os.environ}:
            raise UserError(
                "The platform that runs was started with a MLFLOW_TRACKING_URI that holds a "
                "password, which is kept in no file; set it here as well, or stop the platform."
            )
        say(f"using the platform that already runs: {known.platform.dagster_url}")
        yield known.platform
        return
    if known:
        _stop(known.children, settings)
    # Not in the state folder: the path of a socket is short.
    with TemporaryDirectory(prefix="mlschool-") as folder:
        start = _Start(settings, Path(folder), record, say)
        try:
            platform = start.all()
            with kept_running(start.services, start.note_again):
                yield platform
        finally:
            say("stopping what was started")
            _stop(start.started, settings)
            for claim in start.claims:
                claim.release()
            record.unlink(missing_ok=True)


def stop_leftovers(settings: Settings) -> None:
    """Stop every process that belongs to this state folder."""
    record = settings.home / PLATFORM_RECORD
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
    settings.claim_home(load_spec(settings.spec).name)
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    configuration = settings.dagster_home / "dagster.yaml"
    if settings.dagster_home == settings.home / "dagster" or not configuration.exists():
        document = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
        for located_by_home in ("storage", "local_artifact_storage", "compute_logs"):
            del document[located_by_home]
        with replacing(configuration) as temporary:
            temporary.write_text(yaml.safe_dump(document), encoding="utf-8")
    return {
        "MLSCHOOL_HOME": str(settings.home),
        "DAGSTER_HOME": str(settings.dagster_home),
        "MLSCHOOL_SPEC": str(settings.spec.absolute()),
        "MLSCHOOL_DATA": absolute_uri(settings.data),
    }


def absolute_uri(uri: str) -> str:
    """`uri`, or the whole path that it stands for."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def local_endpoint(settings: Settings) -> LocalEndpoint:
    """The inference server that belongs to this state folder."""
    return LocalEndpoint(
        ServerConfig(
            home=settings.home / "endpoint",
            store_uri=settings.capture_store,
            name=load_spec(settings.spec).name,
            host=settings.endpoint_host,
            port=settings.endpoint_port,
            workers=settings.endpoint_workers,
            spill_bytes=settings.spill_megabytes * 1024**2,
            hosts=settings.hosts,
            connections=settings.endpoint_connections,
            keep_alive_seconds=settings.endpoint_keep_alive,
            preconnect_seconds=settings.endpoint_preconnect,
            token=settings.endpoint_token.reveal() or None,
        ),
        settings.endpoint_url or None,
    )


@dataclass
class _Start:
    """The start of a platform: ``services`` as they run, and all that were ``started``.

    ``folder`` holds the code server's socket, and nothing that outlives it; ``claims`` are on its
    ports.
    """

    settings: Settings
    folder: Path
    record: Path
    say: Say
    services: list[Service] = field(default_factory=list)
    started: list[Identity] = field(default_factory=list)
    claims: "list[BaseFileLock]" = field(default_factory=list)
    platform: Platform | None = None

    def all(self) -> Platform:
        """Start all services, and wait until they answer.

        Raises:
            UserError: one does not.
        """
        environment = prepare(self.settings)
        ports = _choose_ports(self.settings, self.say, self.claims)
        files_url = f"http://127.0.0.1:{ports['report files']}"
        dagster_url = f"http://127.0.0.1:{ports['Dagster']}"
        own_mlflow = "MLFLOW_TRACKING_URI" not in os.environ
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
        self.platform = Platform(dagster_url, tracking_uri, files_url, environment)
        if not is_remote(self.settings.files):
            Path(self.settings.files).mkdir(parents=True, exist_ok=True)
        socket, workspace = self.folder / "socket", self.folder / "workspace.yaml"
        location = _code_location()
        workspace.write_text(_workspace(location["location_name"], socket), encoding="utf-8")
        # In the folder of the command: what is relative in a run's configuration is relative to it.
        code = self._service(
            "code server", _code_command(location, socket), Path.cwd(), needs_child=True
        )
        self._service("report files", _files_command(self.settings, ports["report files"]))
        if own_mlflow:
            self._service("MLflow", _mlflow_command(self.settings, ports["MLflow"]))
        code.wait_until(socket.exists)
        self._service("Dagster", _webserver_command(ports["Dagster"], workspace))
        self._service("daemon", _daemon_command(workspace))
        for service in self.services:
            if service.name in ports:
                service.wait_until(partial(_answers, f"http://127.0.0.1:{ports[service.name]}"))
        return self.platform

    def note_again(self, service: Service) -> None:
        """Record and report that `service` was restarted."""
        self.say(f"{service.name} had ended and is started again; see {service.log}")
        self._note(service)

    def _service(
        self,
        name: str,
        command: list[str],
        folder: Path | None = None,
        *,
        needs_child: bool = False,
    ) -> Service:
        """Start a service; without a `folder`, in one where no `.env` changes its variables."""
        self.say(f"starting {name}")
        assert self.platform is not None  # noqa: S101 - its environment is that of the services
        log = self.settings.home / "logs" / f"{name.lower().replace(' ', '-')}.log"
        environment = {**os.environ, **self.platform.environment}
        if name in NEEDED:
            environment = environment_of_child(*NEEDED[name], environment=environment)
        service = Service.start(
            name, command, environment, log, folder or self.folder, needs_child=needs_child
        )
        self.services.append(service)
        self._note(service)
        return service

    def _note(self, service: Service) -> None:
        # Written after each start, so that nothing is forgotten if this process is killed.
        assert self.platform is not None  # noqa: S101
        self.started.append(service.identity)
        Registered(Identity.of(os.getpid()), self.started, self.platform).save(self.record)


def _choose_ports(settings: Settings, say: Say, claims: "list[BaseFileLock]") -> dict[str, int]:
    """A free port for each server; the one of an endpoint that already runs is kept.

    They are claimed until `claims` are released: of two platforms that start side by side both
    would else be promised the same, and one would take the other's server for its own.
    """
    running = local_endpoint(settings).status()
    preferred = dict(PORTS)
    chosen: dict[str, int] = {}
    if running.serving is not None:
        chosen["endpoint"] = settings.endpoint_port
    else:
        preferred["endpoint"] = settings.endpoint_port
    for name, port in preferred.items():
        chosen[name], claim = claimed_port(port, avoid=list(chosen.values()))
        claims.append(claim)
        if chosen[name] != port:
            say(f"port {port} is taken by another program; {name} uses {chosen[name]}")
    return chosen


def _code_location() -> dict[str, str]:
    """The module that `workspace.yaml` names, and the name of the location that it is."""
    document = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    location: dict[str, str] = document["load_from"][0]["python_module"]
    return location


def _workspace(location: str, socket: Path) -> str:
    server = {"location_name": location, "socket": str(socket), "host": "localhost"}
    return yaml.safe_dump({"load_from": [{"grpc_server": server}]})


def _code_command(location: dict[str, str], socket: Path) -> list[str]:
    return [
        sys.executable, "-m", "dagster", "code-server", "start", "--socket", str(socket),
        "--module-name", location["module_name"], "--location-name", location["location_name"],
        "--log-level", "warning",
    ]  # fmt: skip


def _webserver_command(port: int, workspace: Path) -> list[str]:
    return [
        sys.executable, "-m", "mlschool_dagster.local.webserver", "--host", "127.0.0.1",
        "--port", str(port), "--workspace", str(workspace), "--dagster-log-level", "warning",
    ]  # fmt: skip


def _daemon_command(workspace: Path) -> list[str]:
    return [
        sys.executable, "-m", DAEMON, "run", "--workspace", str(workspace),
        "--log-level", "warning",
    ]  # fmt: skip


def _mlflow_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", settings.tracking_uri,
        "--default-artifact-root", str(settings.home / "mlartifacts"), "--no-serve-artifacts",
        "--allowed-hosts", ",".join(f"{name}:{port}" for name in ("127.0.0.1", "localhost")),
        "--x-frame-options", "DENY",
    ]  # fmt: skip


def _files_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "mlschool_dagster.local.report_server", "--host", "127.0.0.1",
        "--port", str(port), "--folder", settings.files,
    ]  # fmt: skip


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
