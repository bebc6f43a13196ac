"""The interface of an endpoint, be it a process of this machine or a managed service."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.deployment.activity import Activity
from mlschool_dagster.deployment.plan import Capabilities, Plan

Progress = Callable[[str], None]
"""Takes one sentence for each step of a deployment."""


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """Places of a version's files: its folder here and now, and where it is published.

    ``uri`` is the version folder under the files root, which a managed service reads; the folder's
    own ``file://`` address if it is published nowhere.
    """

    folder: Path
    uri: str

    @classmethod
    def of(cls, folder: Path) -> "VersionFiles":
        """The files of a version that is in `folder` only."""
        return cls(folder, folder.absolute().as_uri())


class State(StrEnum):
    """State of an endpoint.

    An endpoint that is updated or rolled back goes on serving meanwhile.
    """

    ABSENT = "absent"
    CREATING = "creating"
    SERVING = "serving"
    UPDATING = "updating"
    ROLLING_BACK = "rolling back"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """Serving and desired plan of an endpoint, and why the two differ if they do.

    ``serving`` is None if nothing takes traffic, ``desired`` if nothing was deployed. ``since`` is
    when the primary began to serve (UTC). ``url`` is where requests go, ``console`` a page about
    the endpoint; either may be empty. ``details`` are facts about this kind of endpoint
    for its operator, by label.
    """

    name: str
    state: State
    serving: Plan | None = None
    desired: Plan | None = None
    since: datetime | None = None
    reason: str = ""
    url: str = ""
    console: str = ""
    details: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def is_as_desired(self) -> bool:
        """Whether the endpoint serves the desired plan, and no operation is under way."""
        return (
            self.state is State.SERVING
            and self.serving is not None
            and self.serving == self.desired
        )

    @property
    def is_changing(self) -> bool:
        """Whether an operation is under way."""
        return self.state not in (State.ABSENT, State.SERVING, State.FAILED)


@dataclass(frozen=True, slots=True)
class Prediction:
    """An endpoint's answer for one row; ``probabilities`` maps each class to its probability."""

    prediction: str
    confidence: float
    probabilities: dict[str, float]
    event_id: str
    model_version: str


@dataclass(frozen=True, slots=True)
class PreflightFinding:
    """Something that a deployment lacks, and the command (or setting) that mends it."""

    problem: str
    remedy: str


Invoke = Callable[[Sequence[Mapping[str, InputValue]]], list[Prediction]]
"""Has one version predict on rows, as a probe, before it takes any traffic."""

Verify = Callable[[str, Invoke], None]
"""Tests the version of that number; whatever it raises keeps the version from serving."""


def accept(version: str, invoke: Invoke) -> None:
    """Verify nothing."""


def ignore(sentence: str) -> None:
    """Report no progress."""


class Endpoint(ABC):
    """One endpoint. Every implementation passes the same contract suite."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The endpoint's name, kept with every capture and every entry of the ledger."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Capabilities of this kind of endpoint."""

    @abstractmethod
    def deploy(
        self,
        plan: Plan,
        files: Mapping[str, VersionFiles],
        *,
        verify: Verify = accept,
        progress: Progress = ignore,
    ) -> EndpointStatus:
        """Converge to `plan`, whose versions have `files` (by version), and return the status then.

        Each version that does not serve yet is loaded, predicts, and passes `verify`, before it
        takes any traffic; no request fails meanwhile. An operation that is under way for the same
        plan is adopted, for another one it waits. After a kill, the same call finds what the dead
        one made and goes on. Returns once the endpoint serves the plan. If anything raises,
        `verify` included, the plan before serves on; without one, nothing does.

        Raises:
            UserError: the plan does not fit the capabilities, a version cannot be served, or the
                endpoint cannot be reached.
        """

    @abstractmethod
    def status(self) -> EndpointStatus:
        """The present state.

        Raises:
            UserError: the service cannot be reached.
        """

    @abstractmethod
    def activity(self, since: datetime, until: datetime) -> Activity:
        """Activity of the endpoint in [since, until), both timezone-aware.

        It is as fine as the service's own counting; what it has not counted is left out.

        Raises:
            UserError: the service cannot be reached.
        """

    @abstractmethod
    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """Have the endpoint predict on `rows`: one prediction for each, in their order.

        `inference_id` becomes the event id of the first row, and with #1, #2, ... appended those of
        the others. Without it, new ones are chosen.

        Raises:
            RefusedError: the endpoint refuses the rows; the error holds its reasons.
            UserError: the endpoint cannot be reached or does not answer in time.
        """

    @abstractmethod
    def teardown(self, progress: Progress = ignore) -> None:
        """Remove the endpoint and whatever it costs; captures stay. Nothing happens without one.

        Raises:
            UserError: something cannot be removed.
        """

    @abstractmethod
    def preflight(self) -> list[PreflightFinding]:
        """Reasons for which a deployment would fail, as far as they can be known beforehand."""
