"""An endpoint that is a server on this machine."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil

from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Role
from mlschool_dagster.clock import CLOCK
from mlschool_dagster.credentials import environment_of_child
from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.deployment.client import EndpointClient
from mlschool_dagster.deployment.endpoint import (
    EndpointStatus,
    Invoke,
    Prediction,
    Progress,
    Verify,
    accept,
)
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.serving.desired_state import (
    Deployment,
    Plan,
    Release,
    read_deployment,
    read_deployments,
    record_deployment,
)
from mlschool_dagster.serving.model_router import plausible_rows
from mlschool_dagster.serving.probes import probe_key
from mlschool_dagster.serving.server_config import (
    LOG_FILE,
    STORE_VARIABLE,
    TOKEN_VARIABLE,
    ServerConfig,
    ServerRecord,
    read_record,
)
from mlschool_dagster.serving.worker_status import WorkerStatus, read_workers

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.05
PORT_SECONDS = 3.0
STOP_SECONDS = 30.0
LOCK_FILE = "deploy.lock"

Process = subprocess.Popen[bytes]


class LocalEndpoint:
    """The endpoint that a detached server with `config` is, with its state in ``config.home``.

    The server goes on when the process that deployed has ended; any `LocalEndpoint` of the same
    home finds it again. With `url`, the server is somebody else's to start and stop: it is reached
    there, and follows what is deployed to the same home.
    """

    def __init__(self, config: ServerConfig, url: str | None = None) -> None:
        self._home = config.home.absolute()
        self.config = replace(config, home=self._home)
        self._is_ours = url is None
        self._url = url or config.url
        self._client = EndpointClient(config.name, self._url, token=config.token)

    @property
    def log(self) -> Path:
        """The log file of a server that was started here."""
        return self._home / LOG_FILE

    def deploy(
        self,
        plan: Plan,
        by: str,
        reason: str,
        progress: Progress,
        verify: Verify = accept,
    ) -> EndpointStatus:
        """See `Endpoint.deploy`."""
        with self._only_deployment():
            before = read_deployment(self._home)
            serving = Plan(None) if before is None else before.plan
            models = {
                release: CompiledModel.load(release.folder)
                for release in plan.releases
                if release not in serving.releases
            }
            started = self._ensure_server(progress)
            try:
                for release, model in models.items():
                    progress(f"Testing version {release.version} beside what serves.")
                    self._carry_out(Deployment(serving, by, reason, candidate=release), started)
                    invoke = self._invoke_candidate(release)
                    invoke(plausible_rows(model.spec))
                    verify(release, invoke)
                self._carry_out(Deployment(plan, by, reason), started)
            except BaseException as error:
                self._take_back(serving, by, error)
                raise
            status = self.status()
        if status is None:
            raise UserError(
                f"The endpoint {self.config.name} does not answer after the deployment; "
                f"{self._hint()}"
            )
        progress(f"Version {status.version} serves at {self._url}.")
        return status

    def status(self) -> EndpointStatus | None:
        """See `Endpoint.status`."""
        record = self._running()
        if (self._is_ours and record is None) or self._client.text("/ping") is None:
            return None
        workers = read_workers(self._home)
        for worker in workers:
            if worker.version is not None and worker.since is not None:
                return EndpointStatus(
                    name=self.config.name,
                    url=self._url,
                    version=worker.version,
                    since=worker.since,
                    canary=worker.canary,
                    canary_share=worker.canary_share,
                    shadow=worker.shadow,
                    sampling_share=worker.sampling_share,
                    details={"workers": len(workers), **self._details(record)},
                )
        return None

    def history(self) -> Sequence[Deployment]:
        """See `Endpoint.history`."""
        return read_deployments(self._home)

    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """See `Endpoint.invoke`."""
        return self._client.invoke(rows, inference_id)

    def stop(self) -> None:
        """See `Endpoint.stop`; a server that is somebody else's runs on."""
        record = read_record(self._home)
        if self._is_ours and record is not None:
            end(record, STOP_SECONDS)

    def _details(self, record: ServerRecord | None) -> dict[str, str | int]:
        if record is None:
            return {}
        return {"pid": record.pid, "port": self.config.port, "log": str(self.log)}

    def _running(self) -> ServerRecord | None:
        """The server of this very configuration, if it runs and is ours."""
        record = read_record(self._home) if self._is_ours else None
        if record is None or not record.is_running or not record.is_of(self.config):
            return None
        return record

    def _ensure_server(self, progress: Progress) -> Process | None:
        """The server's process if it had to be started."""
        if not self._is_ours or self._running() is not None:
            return None
        other = read_record(self._home)
        if other is None or not other.is_running or other.url != self._url:
            require_free_port(self.config.host, self.config.port)
        # A server that was started with other settings makes room only when nothing is in the way.
        self.stop()
        progress(f"Starting the endpoint at {self._url}.")
        secrets = {
            STORE_VARIABLE: self.config.store_uri,
            TOKEN_VARIABLE: self.config.token or "",
        }
        return start_detached(self._command(), secrets, self.log)

    def _command(self) -> list[str]:
        config = self.config
        options = {
            "--home": config.home,
            "--name": config.name,
            "--host": config.host,
            "--port": config.port,
            "--workers": config.workers,
            "--spill-megabytes": config.spill_bytes // 1024**2,
            "--hosts": ",".join(config.hosts),
            "--connections": config.connections,
            "--keep-alive-seconds": config.keep_alive_seconds,
            "--preconnect-seconds": config.preconnect_seconds,
        }
        return [
            *(sys.executable, "-m", "mlschool_dagster.serving"),
            *(str(part) for option in options.items() for part in option),
            *(["--access-log"] if config.access_log else []),
        ]

    def _carry_out(self, deployment: Deployment, started: Process | None) -> None:
        """Record `deployment`, and wait until every worker has acted on it."""
        record_deployment(self._home, deployment)
        expected = self.config.workers if self._is_ours else 1
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            self._require_server(started)
            workers = read_workers(self._home)
            acted = [worker for worker in workers if worker.deployment_id == deployment.id]
            for worker in acted:
                self._require_success(worker, deployment)
            if len(acted) == len(workers) >= expected:
                return
            time.sleep(POLL_SECONDS)
        raise UserError(
            f"The endpoint {self.config.name} did not follow the deployment within "
            f"{DEADLINE_SECONDS:g} seconds; {self._hint()}"
        )

    def _require_server(self, started: Process | None) -> None:
        if not self._is_ours:
            return
        if (self._running() is None) if started is None else (started.poll() is not None):
            raise UserError(f"The endpoint {self.config.name} ended by itself; {self._hint()}")

    def _require_success(self, worker: WorkerStatus, deployment: Deployment) -> None:
        failure = worker.failure
        # While a candidate is tested, the plan beside it is what served before: if a version of
        # that has gone bad, all the more reason to go on.
        if failure is not None and (not deployment.candidate or failure.role is Role.CANDIDATE):
            raise UserError(
                f"The endpoint {self.config.name} cannot serve version {failure.version}: "
                f"{failure.reason}"
            )

    def _invoke_candidate(self, release: Release) -> Invoke:
        def invoke(rows: Sequence[Mapping[str, InputValue]]) -> list[Prediction]:
            probe = f"{SMOKE_TEST_PREFIX}{uuid4()}"
            try:
                answers = self._client.invoke(rows, probe, Role.CANDIDATE, probe_key(self._home))
            except RefusedError as error:
                raise UserError(
                    f"The endpoint {self.config.name} refuses plausible rows ({error}); "
                    f"check the data spec of version {release.version}."
                ) from None
            for answer in answers:
                if answer.model_version != release.version:
                    raise UserError(
                        f"The endpoint {self.config.name} answered with version "
                        f"{answer.model_version} instead of {release.version}; deploy again."
                    )
            return answers

        return invoke

    def _take_back(self, plan: Plan, by: str, error: BaseException) -> None:
        """Go back to `plan`, and let the history tell why."""
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        record_deployment(self._home, Deployment(plan, by, f"Taken back: {words}"))
        if plan.primary is None:
            self.stop()

    def _hint(self) -> str:
        if not self._is_ours:
            return f"make sure that its server runs with the home folder {self._home}."
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1] if lines else "nothing"
        return f"its log {self.log} ends with: {last}"

    @contextmanager
    def _only_deployment(self) -> Iterator[None]:
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / LOCK_FILE).open("w") as lock:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"Another deployment to {self._home} is under way; try again after it."
                        ) from None
                time.sleep(POLL_SECONDS)
            yield


def start_detached(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that it outlives this process.

    It gets `environment`, and of this process's variables what Python and PostgreSQL's driver need.
    What the command prints is appended to the file `log`.
    """
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the command is this program's own
            command,
            env={**environment_of_child("MLSCHOOL_HOME", CLOCK, "PG*"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(record: ServerRecord, grace: float) -> None:
    """End the process of `record`: ask, and after `grace` seconds insist."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        if record.is_running:
            os.kill(record.pid, sign)
        while record.is_running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def require_free_port(host: str, port: int) -> None:
    """Make sure that a server can listen on `port` of `host`.

    Raises:
        UserError: another program listens there (named if the system tells it), or the address is
            not this machine's.
    """
    # The workers of a server that has just been killed hold its port for a moment longer.
    deadline = time.monotonic() + PORT_SECONDS
    while (error := _bind_error(host, port)) is not None:
        if error.errno != errno.EADDRINUSE:
            raise UserError(
                f"The endpoint cannot listen on {host}:{port} ({error.strerror}); "
                "give it another address."
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"Port {port} of {host} is taken by {_listener(port)}; "
                "end it or give the endpoint another port."
            )
        time.sleep(POLL_SECONDS)


def _bind_error(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _listener(port: int) -> str:
    """Who listens on `port`, as a phrase."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr if connection.status == psutil.CONN_LISTEN else None
            if address and address.port == port and connection.pid is not None:
                name = psutil.Process(connection.pid).name()
                return f"{name} (process {connection.pid})"
    except psutil.Error:
        # The system tells only its administrator, or the program has just ended.
        pass
    return "another program"
