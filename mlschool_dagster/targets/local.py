"""An endpoint that is a process of this machine."""

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.serving.deployment import (
    Deployment,
    Release,
    read_deployment,
    write_deployment,
)
from mlschool_dagster.serving.process import LOG_FILE, ServerRecord, digest_of, read_record, url_of
from mlschool_dagster.serving.versions import plausible_rows
from mlschool_dagster.targets.base import EndpointStatus, Prediction, Progress
from mlschool_dagster.targets.client import EndpointClient
from mlschool_dagster.targets.processes import (
    POLL_SECONDS,
    end,
    require_free_port,
    start_detached,
)
from mlschool_dagster.values import InputValue

DEADLINE_SECONDS = 60.0
STOP_SECONDS = 30.0
LOCK_FILE = "deploy.lock"


class LocalTarget:
    """The endpoint `name` as a detached server process, with its state in the folder `home`.

    The server captures into the store at `store_uri` and listens on `port` of `host`. It goes on
    when the process that deployed has ended; any `LocalTarget` of the same home finds it again.
    """

    def __init__(
        self, home: Path, store_uri: str, name: str, host: str = "127.0.0.1", port: int = 8080
    ) -> None:
        self._home = home.absolute()
        self._store_uri = store_uri
        self._name = name
        self._host = host
        self._port = port
        self._url = url_of(host, port)
        self._configuration = digest_of(name, host, port, store_uri)
        self._client = EndpointClient(name, self._url)

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._home / LOG_FILE

    def deploy(
        self,
        version: str,
        folder: Path,
        progress: Progress,
        verify: Callable[[], None] = lambda: None,
    ) -> EndpointStatus:
        """See `EndpointTarget.deploy`."""
        model = CompiledModel.load(folder)
        with self._only_deployment():
            before = _readable_deployment(self._home)
            deployment = Deployment(Release(version, folder))
            try:
                started = self._ensure_server(deployment, progress)
                self._wait_until_served(deployment, started)
                self._check_prediction(version, plausible_rows(model.spec)[1])
                verify()
            except BaseException:
                write_deployment(self._home, before)
                if before is None:
                    self.stop()
                raise
        status = self.status()
        if status is None:
            raise UserError(f"The endpoint {self._name} ended after the deployment; {self._hint()}")
        progress(f"Version {version} serves at {self._url}.")
        return status

    def status(self) -> EndpointStatus | None:
        """See `EndpointTarget.status`."""
        record = self._running()
        health = self._client.get("/health") if record else None
        if record is None or health is None or health.get("version") is None:
            return None
        return EndpointStatus(
            name=self._name,
            url=self._url,
            version=health["version"],
            since=datetime.fromisoformat(health["since"]),
            details={"pid": record.pid, "port": self._port, "log": str(self.log)},
        )

    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """See `EndpointTarget.invoke`."""
        return self._client.invoke(rows, inference_id)

    def stop(self) -> None:
        """See `EndpointTarget.stop`."""
        record = read_record(self._home)
        if record is not None:
            end(record, STOP_SECONDS)

    def _running(self) -> ServerRecord | None:
        record = read_record(self._home)
        if record is None or record.configuration != self._configuration or not record.is_running:
            return None
        return record

    def _ensure_server(
        self, deployment: Deployment, progress: Progress
    ) -> "subprocess.Popen[bytes] | None":
        version = deployment.primary.version
        if self._running() is not None:
            progress(f"Swapping the endpoint at {self._url} to version {version}.")
            write_deployment(self._home, deployment)
            return None
        other = read_record(self._home)
        if other is None or not other.is_running or other.url != self._url:
            require_free_port(self._host, self._port)
        # A server that was started with other settings makes room only when nothing is in the way.
        self.stop()
        write_deployment(self._home, deployment)
        progress(f"Starting the endpoint at {self._url} with version {version}.")
        return start_detached(self._command(), self.log)

    def _command(self) -> list[str]:
        options = {
            "--home": str(self._home),
            "--store": self._store_uri,
            "--name": self._name,
            "--host": self._host,
            "--port": str(self._port),
        }
        return [
            *(sys.executable, "-m", "mlschool_dagster.serving"),
            *(part for option in options.items() for part in option),
        ]

    def _wait_until_served(
        self, deployment: Deployment, started: "subprocess.Popen[bytes] | None"
    ) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if (self._running() is None) if started is None else (started.poll() is not None):
                raise UserError(f"The endpoint {self._name} ended by itself; {self._hint()}")
            health = self._client.get("/health") or {}
            if health.get("deployment") == deployment.id:
                self._require_success(health, deployment)
                return
            time.sleep(POLL_SECONDS)
        raise UserError(
            f"The endpoint {self._name} did not serve version {deployment.primary.version} "
            f"within {DEADLINE_SECONDS:g} seconds; {self._hint()}"
        )

    def _require_success(self, health: Mapping[str, Any], deployment: Deployment) -> None:
        if health.get("failure") is not None:
            raise UserError(
                f"The endpoint {self._name} cannot serve version {deployment.primary.version}: "
                f"{health['failure']['reason']}"
            )

    def _check_prediction(self, version: str, row: Mapping[str, InputValue]) -> None:
        try:
            (answer,) = self.invoke([row], f"{SMOKE_TEST_PREFIX}{uuid4()}")
        except RefusedError as error:
            raise UserError(
                f"The endpoint {self._name} refuses a plausible row ({error}); "
                "check the version's data spec."
            ) from None
        if answer.model_version != version:
            raise UserError(
                f"The endpoint {self._name} answered with version {answer.model_version} instead "
                f"of {version}; deploy again."
            )

    def _hint(self) -> str:
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


def _readable_deployment(home: Path) -> Deployment | None:
    try:
        return read_deployment(home)
    except UserError:
        # A damaged file is about to be replaced, and is nothing to go back to.
        return None
