"""Which model answers: follows the deployment file, and swaps versions between two requests."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from mlschool_dagster.capture.records import utc_now
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.modeling.spec import DataSpec, NumericColumn
from mlschool_dagster.serving.deployment import (
    DEPLOYMENT_FILE,
    Deployment,
    Release,
    read_deployment,
)
from mlschool_dagster.serving.validation import Row, Validator

POLL_SECONDS = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A loaded version that has proved to predict."""

    release: Release
    model: CompiledModel
    validator: Validator
    since: datetime


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A version that should serve but cannot, and why."""

    version: str | None
    reason: str
    at: datetime


class Versions:
    """The version that serves by the deployment file in `home`, kept up to date by `follow`.

    ``current`` is replaced as a whole: who holds one goes on with it. ``deployment_id`` names the
    deployment last acted on; ``failure`` is set if it could not be carried out, and the version
    before it goes on serving.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: object = None
        self.current: Version | None = None
        self.deployment_id: str | None = None
        self.failure: LoadFailure | None = None

    async def follow(self) -> None:
        """Act on each change of the deployment file, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self) -> None:
        """Act on the deployment file if it changed since last time."""
        state = _file_state(self._home / DEPLOYMENT_FILE)
        if state == self._seen:
            return
        self._seen = state
        deployment: Deployment | None = None
        try:
            deployment = read_deployment(self._home)
            if deployment is not None:
                await self._serve(deployment.primary)
            self.failure = None
        except Exception as error:
            # A version of whatever fault must not end the one that serves.
            known = isinstance(error, UserError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            version = deployment.primary.version if deployment else None
            self.failure = LoadFailure(version, reason, utc_now())
            log.error(
                "version does not serve",
                extra={"version": version, "reason": reason},
                exc_info=None if known else error,
            )
        self.deployment_id = deployment.id if deployment else None

    async def _serve(self, release: Release) -> None:
        if self.current is not None and self.current.release == release:
            return
        self.current = await asyncio.to_thread(load_version, release)
        log.info("version serves", extra={"version": release.version})


def load_version(release: Release) -> Version:
    """The version in the folder of `release`, after it has made a real prediction.

    Raises:
        UserError: there is no intact model in the folder, or it does not predict.
    """
    model = CompiledModel.load(release.folder)
    rows = plausible_rows(model.spec)
    with np.errstate(all="ignore"):
        probabilities = model.probabilities(rows)
    if not np.allclose(probabilities.sum(axis=1), 1.0):
        raise UserError(
            f"Version {release.version} predicts no probabilities for plausible input; "
            "train it again."
        )
    return Version(release, model, Validator(model.spec), utc_now())


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
