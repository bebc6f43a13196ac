"""Model router: which loaded version answers a request.

It follows the server's desired state and swaps versions between two requests.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mlschool_dagster.capture.records import Role
from mlschool_dagster.dataset.spec import DataSpec, NumericColumn
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.serving.desired_state import (
    DESIRED_STATE_FILE,
    DesiredState,
    VersionFolder,
    read_desired_state,
)
from mlschool_dagster.serving.validation import Row, Validator
from mlschool_dagster.serving.worker_status import (
    HEARTBEAT_SECONDS,
    LoadFailure,
    WorkerFile,
    WorkerStatus,
)

POLL_SECONDS = 0.1
RETRY_SECONDS = 2.0
"""A version that does not load is tried again: after a reboot its folder may appear late."""

log = logging.getLogger(__name__)


class NoVersionError(Exception):
    """No version takes traffic yet."""


@dataclass(frozen=True, slots=True)
class Version:
    """A loaded version that has proved to predict, and since when it serves (UTC)."""

    files: VersionFolder
    model: CompiledModel
    validator: Validator
    since: datetime

    @property
    def number(self) -> str:
        """The version's number in the registry."""
        return self.files.version


@dataclass(frozen=True, slots=True)
class Routing:
    """Which version answers which request; never changed, only replaced as a whole."""

    roles: Mapping[Role, Version]
    canary_share: float = 0.0
    sampling_share: float = 1.0

    @property
    def primary(self) -> Version | None:
        """The version that answers, but for the canary's share; None while none takes traffic."""
        return self.roles.get(Role.PRIMARY)

    @property
    def shadow(self) -> Version | None:
        """The version that predicts beside the answer, if any."""
        return self.roles.get(Role.SHADOW)

    def variant(self, role: Role) -> Version | None:
        """The version in `role`, if there is one."""
        return self.roles.get(role)

    def choose(self, key: str) -> tuple[Role, Version]:
        """Role and version for the request with the event id `key`: the same key, the same role.

        Raises:
            NoVersionError: there is only a candidate.
        """
        role = Role.PRIMARY
        if self.canary_share and _fraction("canary", key) < self.canary_share:
            role = Role.CANARY
        try:
            return role, self.roles[role]
        except KeyError:
            raise NoVersionError from None

    def sampled(self, key: str) -> bool:
        """Whether the request with the event id `key` is captured, whoever answers it."""
        return self.sampling_share == 1.0 or _fraction("sampling", key) < self.sampling_share


def _fraction(purpose: str, key: str) -> float:
    """A number in [0, 1) drawn from `key`, for each purpose another one."""
    # A checksum would be faster, but is linear: its values for two salts go hand in hand.
    digest = blake2b(key.encode(), digest_size=6, salt=purpose.encode()).digest()
    return int.from_bytes(digest) / 2.0**48


class ModelRouter:
    """Serving versions by the desired state in `home`, kept up to date by `follow`.

    ``routing`` is replaced as a whole: a request goes on with the one it began with.
    ``deployment_id`` names the desired state that was last acted on. If one of its versions does
    not load, what served before goes on as a whole; if the candidate does not, nothing else
    changes; ``failure`` says which version failed and why.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = WorkerFile(home)
        self._seen: object = ()
        self._retry_at = float("inf")
        self._desired: DesiredState | None = None
        self.routing: Routing | None = None
        self.deployment_id: str | None = None
        self.failure: LoadFailure | None = None

    async def follow(self) -> None:
        """Act on each desired state and write the worker's status, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat())
                while True:
                    await self.refresh()
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            self._file.remove()

    async def refresh(self) -> None:
        """Act on the desired state if it has changed, or if what failed is due again."""
        state = _file_state(self._home / DESIRED_STATE_FILE)
        if state == self._seen and time.monotonic() < self._retry_at:
            return
        if self._seen == ():
            # Whoever waits for all workers must know of this one before it reads what to serve.
            await self._write_status()
        self._seen = state
        try:
            read = await asyncio.to_thread(read_desired_state, self._home)
        except UserError as error:
            self.failure = _failure(None, None, error)
        else:
            self._desired = read or self._desired
            if self._desired is not None:
                await self._carry_out(self._desired)
        due = float("inf") if self.failure is None else time.monotonic() + RETRY_SECONDS
        self._retry_at = due
        await self._write_status()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self._write_status()

    async def _write_status(self) -> None:
        try:
            await asyncio.to_thread(self._file.write, self._status())
        except OSError:
            # A full disk must not end a worker that can still answer; the next beat tries again.
            log.exception("worker status cannot be written")

    def _status(self) -> WorkerStatus:
        routing = self.routing or Routing({})
        numbers = {role: version.number for role, version in routing.roles.items()}
        return WorkerStatus(
            pid=os.getpid(),
            deployment_id=self.deployment_id,
            failure=self.failure,
            version=numbers.get(Role.PRIMARY),
            since=None if routing.primary is None else routing.primary.since,
            canary=numbers.get(Role.CANARY),
            canary_share=routing.canary_share,
            shadow=numbers.get(Role.SHADOW),
            sampling_share=routing.sampling_share,
        )

    async def _carry_out(self, desired: DesiredState) -> None:
        before = self.routing or Routing({})
        loaded = {version.files: version for version in before.roles.values()}
        served = desired.without_candidate
        roles, failure = await self._load(served.roles, desired, loaded)
        if failure is None:
            routing = Routing(roles, desired.canary_share, desired.sampling_share)
        else:
            routing = replace(before, roles=_without_candidate(before.roles))
        if Role.CANDIDATE in desired.roles:
            candidate, candidate_failure = await self._load(
                {Role.CANDIDATE: desired.roles[Role.CANDIDATE]}, desired, loaded
            )
            routing = replace(routing, roles={**routing.roles, **candidate})
            failure = candidate_failure or failure
        # All at once, so that nobody sees one without the others.
        self.routing = routing if routing.roles else None
        self.deployment_id, self.failure = desired.id, failure
        log.info(
            "desired state followed",
            extra={
                "deployment": desired.id,
                "versions": {role: version.number for role, version in routing.roles.items()},
            },
        )

    async def _load(
        self,
        roles: Mapping[Role, VersionFolder],
        desired: DesiredState,
        loaded: Mapping[VersionFolder, Version],
    ) -> tuple[dict[Role, Version], LoadFailure | None]:
        """The versions of `roles`, as they are if `loaded` already; none if one fails."""
        versions: dict[Role, Version] = {}
        for role, files in roles.items():
            since = desired.since.get(files.version, desired.at)
            try:
                version = loaded.get(files)
                if version is None:
                    version = await asyncio.to_thread(load_version, files, since)
            except Exception as error:
                # A version of whatever fault must not end those that serve.
                return {}, _failure(role, files.version, error)
            versions[role] = replace(version, since=since)
        return versions, None


def _failure(role: Role | None, version: str | None, error: Exception) -> LoadFailure:
    """Message of the failure; it is logged, too."""
    known = isinstance(error, UserError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    log.error(
        "version does not serve",
        extra={"version": version, "role": role, "reason": reason},
        exc_info=None if known else error,
    )
    return LoadFailure(role, version, reason)


def _without_candidate(roles: Mapping[Role, Version]) -> dict[Role, Version]:
    return {role: version for role, version in roles.items() if role is not Role.CANDIDATE}


def load_version(files: VersionFolder, since: datetime) -> Version:
    """Load the version of `files`, and have it make a real prediction.

    Raises:
        UserError: there is no intact model in the folder, or it does not predict.
    """
    model = CompiledModel.load(files.folder)
    rows = plausible_rows(model.spec)
    with np.errstate(all="ignore"):
        probabilities = model.probabilities(rows)
    if not np.allclose(probabilities.sum(axis=1), 1.0):
        raise UserError(
            f"Version {files.version} predicts no probabilities for plausible input; "
            "train it again."
        )
    return Version(files, model, Validator(model.spec), since)


def plausible_rows(spec: DataSpec) -> list[Row]:
    """Rows that any model of `spec` must predict on: low, middling and high values."""
    ends: list[Callable[[NumericColumn], float]] = [
        lambda column: column.minimum,
        lambda column: (column.minimum + column.maximum) / 2,
        lambda column: column.maximum,
    ]
    return [
        {
            column.name: end(column) if isinstance(column, NumericColumn) else column.categories[0]
            for column in spec.columns
        }
        for end in ends
    ]


def _file_state(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        # A state like any other: acting on it finds out what it means.
        return error.errno
    return status.st_ino, status.st_mtime_ns, status.st_size
