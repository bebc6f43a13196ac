"""An endpoint that is a server on this machine."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil

from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Role
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.clock import CLOCK, utc_now
from mlschool_dagster.credentials import environment_of_child
from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.deployment.activity import (
    Activity,
    Reading,
    activity_between,
    memory_bytes,
    read_metrics,
)
from mlschool_dagster.deployment.client import EndpointClient
from mlschool_dagster.deployment.endpoint import (
    Endpoint,
    EndpointStatus,
    Invoke,
    Prediction,
    PreflightFinding,
    Progress,
    State,
    Verify,
    VersionFiles,
    accept,
    ignore,
)
from mlschool_dagster.deployment.plan import Capabilities, Plan
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.serving.desired_state import (
    DesiredState,
    VersionFolder,
    read_desired_state,
    write_desired_state,
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
METRICS_SECONDS = 10.0
"""How long the server may take to answer with its metrics."""
LOCK_FILE = "deploy.lock"
READINGS_FILE = "readings.json"
GRAIN = timedelta(minutes=1)
"""A reading made this much later than asked for stands for the time asked for."""
READINGS = 200
"""Newest readings of the metrics that are kept."""

CAPABILITIES = Capabilities(
    canary=True,
    shadow=True,
    shadow_beside_canary=True,
    smallest_shadow_share=1.0,
    deploy_timeout=timedelta(seconds=DEADLINE_SECONDS),
    refuses_reused_ids=True,
    durable=True,
)

Process = subprocess.Popen[bytes]


class LocalEndpoint(Endpoint):
    """The endpoint that a detached server with `config` is, with its state in ``config.home``.

    The server goes on when the process that deployed has ended; any `LocalEndpoint` of the same
    home finds it again. With `url`, something else starts and stops the server: it is reached
    there, and follows what is deployed to the same home.
    """

    def __init__(self, config: ServerConfig, url: str | None = None) -> None:
        self._home = config.home.absolute()
        self.config = replace(config, home=self._home)
        self._is_ours = url is None
        self._url = url or config.url
        self._client = EndpointClient(config.name, self._url, token=config.token)

    @property
    def name(self) -> str:
        """See `Endpoint.name`."""
        return self.config.name

    @property
    def capabilities(self) -> Capabilities:
        """See `Endpoint.capabilities`."""
        return CAPABILITIES

    @property
    def log(self) -> Path:
        """The log file of a server that was started here."""
        return self._home / LOG_FILE

    def deploy(
        self,
        plan: Plan,
        files: Mapping[str, VersionFiles],
        *,
        verify: Verify = accept,
        progress: Progress = ignore,
    ) -> EndpointStatus:
        """See `Endpoint.deploy`."""
        self.capabilities.require(plan)
        with self._only_deployment(progress):
            serving = (read_desired_state(self._home) or DesiredState()).without_candidate
            target = _desired_state(plan, files)
            new = {
                version: CompiledModel.load(version.folder)
                for version in dict.fromkeys(target.roles.values())
                if version not in serving.roles.values()
            }
            started = self._ensure_server(progress)
            try:
                for version, model in new.items():
                    progress(f"Testing version {version.version} beside what serves.")
                    self._carry_out(serving.with_candidate(version), started)
                    invoke = self._invoke_candidate(version.version)
                    invoke(plausible_rows(model.spec))
                    verify(version.version, invoke)
                self._carry_out(target, started)
            except BaseException:
                self._take_back(serving)
                raise
            status = self.status()
        if status.serving != plan:
            raise UserError(
                f"The endpoint {self.name} does not answer after the deployment; {self._hint()}"
            )
        progress(f"Version {plan.primary} serves at {self._url}.")
        return status

    def status(self) -> EndpointStatus:
        """See `Endpoint.status`."""
        try:
            desired = read_desired_state(self._home)
        except UserError as error:
            return self._status(State.FAILED, None, [], reason=str(error))
        answers = (not self._is_ours or self._running() is not None) and self._answers()
        workers = read_workers(self._home) if answers else []
        plan = _plan(desired) if desired is not None else None
        if not any(worker.version for worker in workers):
            if plan is None:
                is_testing = desired is not None and Role.CANDIDATE in desired.roles
                is_creating = answers and is_testing and self._is_locked()
                return self._status(State.CREATING if is_creating else State.ABSENT, None, workers)
            reason = _failure(workers) or "The server does not answer; deploy again."
            state = State.CREATING if answers and not _failure(workers) else State.FAILED
            return self._status(state, plan, workers, reason=reason)
        is_changing = desired is not None and (
            Role.CANDIDATE in desired.roles
            or any(worker.deployment_id != desired.id for worker in workers)
        )
        state = State.UPDATING if is_changing and self._is_locked() else State.SERVING
        return self._status(state, plan, workers, reason=_failure(workers))

    def activity(self, since: datetime, until: datetime) -> Activity:
        """See `Endpoint.activity`: exact where an earlier call read the metrics at `since`."""
        readings = self._readings()
        exposition = self._metrics()
        if exposition is not None:
            now = utc_now()
            at = until if timedelta(0) <= now - until < GRAIN else now
            readings = [*readings, (at, read_metrics(exposition))][-READINGS:]
            self._keep_readings(readings)
        before = [reading for at, reading in readings if at <= since][-1:] or [Reading()]
        within = [reading for at, reading in readings if since < at <= until]
        activity = activity_between([*before, *within])
        record = read_record(self._home) if self._is_ours else None
        if record is None or not record.is_running:
            return activity
        gauges = {**activity.gauges, "memory_bytes": memory_bytes(record.pid)}
        return replace(activity, gauges=gauges)

    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """See `Endpoint.invoke`. The same id with other rows is refused."""
        return self._client.invoke(rows, inference_id)

    def teardown(self, progress: Progress = ignore) -> None:
        """See `Endpoint.teardown`; a server of others runs on and serves nothing."""
        with self._only_deployment(progress):
            if read_desired_state(self._home) is not None:
                write_desired_state(self._home, DesiredState())
            progress(f"Stopping the server at {self._url}.")
            self.stop()

    def preflight(self) -> list[PreflightFinding]:
        """See `Endpoint.preflight`."""
        return [*self._unwritable(), *self._unreachable(), *self._uncaptured()]

    def _unwritable(self) -> Iterator[PreflightFinding]:
        existing = next(path for path in (self._home, *self._home.parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            problem = f"The folder {existing} for the state of the endpoint cannot be written."
            yield PreflightFinding(
                problem, f'sudo chown -R "$(id -u)" {existing}, or MLSCHOOL_HOME=...'
            )

    def _unreachable(self) -> Iterator[PreflightFinding]:
        if not self._is_ours and not self._answers():
            yield PreflightFinding(
                f"Nothing answers at {self._url}.",
                f"python -m mlschool_dagster.serving --home {self._home} --name {self.name}, or "
                "MLSCHOOL_ENDPOINT_URL=...",
            )
        elif self._is_ours and self._running() is None:
            try:
                require_free_port(self.config.host, self.config.port)
            except UserError as error:
                yield PreflightFinding(str(error), "MLSCHOOL_ENDPOINT_PORT=...")

    def _uncaptured(self) -> Iterator[PreflightFinding]:
        path = self.config.store_uri.partition("sqlite:///")[2]
        if path and not Path(path).exists():
            # It will be made.
            return
        try:
            with closing(open_store(self.config.store_uri)) as store:
                # No captures at all show whether it can be written.
                store.append([])
        except UserError as error:
            yield PreflightFinding(str(error), "MLSCHOOL_CAPTURE_STORE=...")

    def stop(self) -> None:
        """End the server, which finishes what it has begun; a server of others runs on.

        What it served, it serves again when it is started.
        """
        record = read_record(self._home)
        if self._is_ours and record is not None:
            end(record, STOP_SECONDS)

    def _status(
        self,
        state: State,
        desired: Plan | None,
        workers: Sequence[WorkerStatus],
        reason: str = "",
    ) -> EndpointStatus:
        serving = next((worker for worker in workers if worker.version is not None), None)
        record = self._running()
        details: dict[str, str | int] = {"workers": len(workers)} if workers else {}
        if record is not None:
            details |= {"pid": record.pid, "port": self.config.port, "log": str(self.log)}
        return EndpointStatus(
            name=self.name,
            state=state,
            serving=None if serving is None else _plan_of(serving),
            desired=desired,
            since=None if serving is None else serving.since,
            reason=reason,
            url=self._url,
            details=details,
        )

    def _answers(self) -> bool:
        return self._client.text("/live") is not None

    def _metrics(self) -> str | None:
        if self._is_ours and self._running() is None:
            return None
        client = EndpointClient(self.name, self._url, METRICS_SECONDS, self.config.token)
        return client.text("/metrics")

    def _readings(self) -> list[tuple[datetime, Reading]]:
        """The readings that are kept, the newest last; none if the file is damaged."""
        try:
            entries = json.loads((self._home / READINGS_FILE).read_bytes())
            return [
                (datetime.fromisoformat(entry["at"]), Reading.from_dict(entry["reading"]))
                for entry in entries
            ]
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def _keep_readings(self, readings: Sequence[tuple[datetime, Reading]]) -> None:
        document = [
            {"at": at.isoformat(), "reading": reading.to_dict()} for at, reading in readings
        ]
        with replacing(self._home / READINGS_FILE) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")

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
        # A server with other settings is stopped only when its successor can have the port.
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

    def _carry_out(self, desired: DesiredState, started: Process | None) -> None:
        """Write `desired`, and wait until every worker has acted on it."""
        write_desired_state(self._home, desired)
        expected = self.config.workers if self._is_ours else 1
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            self._require_server(started)
            workers = read_workers(self._home)
            acted = [worker for worker in workers if worker.deployment_id == desired.id]
            for worker in acted:
                self._require_success(worker, desired)
            if len(acted) == len(workers) >= expected:
                return
            time.sleep(POLL_SECONDS)
        raise UserError(
            f"The endpoint {self.name} did not follow the deployment within "
            f"{DEADLINE_SECONDS:g} seconds; {self._hint()}"
        )

    def _require_server(self, started: Process | None) -> None:
        if not self._is_ours:
            return
        if (self._running() is None) if started is None else (started.poll() is not None):
            raise UserError(f"The endpoint {self.name} ended by itself; {self._hint()}")

    def _require_success(self, worker: WorkerStatus, desired: DesiredState) -> None:
        failure = worker.failure
        # While a candidate is tested, the versions beside it are those that served before: if one
        # of them has gone bad, all the more reason to go on.
        is_testing = Role.CANDIDATE in desired.roles
        if failure is not None and (not is_testing or failure.role is Role.CANDIDATE):
            raise UserError(
                f"The endpoint {self.name} cannot serve version {failure.version}: {failure.reason}"
            )

    def _invoke_candidate(self, version: str) -> Invoke:
        def invoke(rows: Sequence[Mapping[str, InputValue]]) -> list[Prediction]:
            probe = f"{SMOKE_TEST_PREFIX}{uuid4()}"
            try:
                answers = self._client.invoke(rows, probe, Role.CANDIDATE, probe_key(self._home))
            except RefusedError as error:
                raise UserError(
                    f"The endpoint {self.name} refuses plausible rows ({error}); "
                    f"check the data spec of version {version}."
                ) from None
            for answer in answers:
                if answer.model_version != version:
                    raise UserError(
                        f"The endpoint {self.name} answered with version {answer.model_version} "
                        f"instead of {version}; deploy again."
                    )
            return answers

        return invoke

    def _take_back(self, serving: DesiredState) -> None:
        """Go back to what served before; stop the server if nothing did."""
        write_desired_state(self._home, serving)
        if Role.PRIMARY not in serving.roles:
            self.stop()

    def _hint(self) -> str:
        if not self._is_ours:
            return f"make sure that its server runs with the home folder {self._home}."
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1] if lines else "nothing"
        return f"its log {self.log} ends with: {last}"

    @contextmanager
    def _only_deployment(self, progress: Progress) -> Iterator[None]:
        """Refuse a deployment while another one is under way; one whose process died is none."""
        from filelock import FileLock, Timeout

        self._home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._home / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress("Waiting for another deployment.")
            try:
                lock.acquire(timeout=DEADLINE_SECONDS, poll_interval=POLL_SECONDS)
            except Timeout:
                raise UserError(
                    f"Another deployment to {self._home} is under way; try again after it."
                ) from None
        try:
            yield
        finally:
            lock.release()

    def _is_locked(self) -> bool:
        """Whether a deployment is under way."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._home / LOCK_FILE, timeout=0):
                return False
        except Timeout:
            return True


def _desired_state(plan: Plan, files: Mapping[str, VersionFiles]) -> DesiredState:
    versions = {Role.PRIMARY: plan.primary, Role.CANARY: plan.canary, Role.SHADOW: plan.shadow}
    return DesiredState(
        roles={
            role: VersionFolder(version, files[version].folder.absolute())
            for role, version in versions.items()
            if version is not None
        },
        canary_share=plan.canary_share,
        sampling_share=plan.sampling_share,
    )


def _plan(desired: DesiredState) -> Plan | None:
    """`desired` as a plan; None without a primary."""
    if Role.PRIMARY not in desired.roles:
        return None
    numbers = {role: files.version for role, files in desired.roles.items()}
    return Plan(
        primary=numbers[Role.PRIMARY],
        canary=numbers.get(Role.CANARY),
        canary_share=desired.canary_share,
        shadow=numbers.get(Role.SHADOW),
        shadow_share=float(Role.SHADOW in numbers),
        sampling_share=desired.sampling_share,
    )


def _plan_of(worker: WorkerStatus) -> Plan | None:
    """The versions that a worker serves, as a plan."""
    if worker.version is None:
        return None
    return Plan(
        primary=worker.version,
        canary=worker.canary,
        canary_share=worker.canary_share,
        shadow=worker.shadow,
        shadow_share=float(worker.shadow is not None),
        sampling_share=worker.sampling_share,
    )


def _failure(workers: Sequence[WorkerStatus]) -> str:
    """Why a worker does not serve what it should; empty if all do."""
    failures = (worker.failure for worker in workers)
    return next((failure.reason for failure in failures if failure is not None), "")


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
    for sign, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + timeout
        if record.is_running:
            os.kill(record.pid, sign)
        while record.is_running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def require_free_port(host: str, port: int) -> None:
    """Make sure that a server can listen on `port` of `host`.

    Raises:
        UserError: another program listens there (named if the system names it), or the address is
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
    """The program that listens on `port`, as a phrase."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr if connection.status == psutil.CONN_LISTEN else None
            if address and address.port == port and connection.pid is not None:
                name = psutil.Process(connection.pid).name()
                return f"{name} (process {connection.pid})"
    except psutil.Error:
        # The system names it to its administrator only, or the program has just ended.
        pass
    return "another program"
