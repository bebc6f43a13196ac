"""What every target of a deployment can do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.serving.desired_state import Deployment, Plan, Release

Progress = Callable[[str], None]
"""Told one sentence at each step of something that takes a while."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """Which versions an endpoint serves, where, and since when (UTC).

    ``version`` is the primary's, ``canary`` and ``shadow`` those of the other roles, if any.
    ``details`` are what else an operator wants to know of this kind of target (a process id and a
    log file, or a cloud resource's name), by label.
    """

    name: str
    url: str
    version: str
    since: datetime
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    sampling_share: float = 1.0
    details: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """An endpoint's answer for one row; ``probabilities`` maps each class to its probability."""

    prediction: str
    confidence: float
    probabilities: dict[str, float]
    event_id: str
    model_version: str


Invoke = Callable[[Sequence[Mapping[str, InputValue]]], list[Prediction]]
"""Has one version predict on rows, as a probe, before it takes any traffic."""

Verify = Callable[[Release, Invoke], None]
"""Tests a version; whatever it raises keeps that version from serving."""


def accept(release: Release, invoke: Invoke) -> None:
    """Has nothing to object."""


class Endpoint(Protocol):
    """One endpoint in one place: a process of this machine, or a managed service."""

    def deploy(
        self,
        plan: Plan,
        by: str,
        reason: str,
        progress: Progress,
        verify: Verify = accept,
    ) -> EndpointStatus:
        """Make `plan` what serves, and record who wanted it and why.

        Each version that does not serve yet is loaded, predicts, and passes `verify`, before it
        takes any traffic; no request fails meanwhile. Returns once every worker serves the plan. If
        anything raises, `verify` included, the plan before serves on; without one, nothing does.

        Raises:
            UserError: a version cannot be served, or the target not be reached.
        """

    def status(self) -> EndpointStatus | None:
        """What serves now; None if nothing does."""

    def history(self) -> Sequence[Deployment]:
        """Every deployment, the present one last."""

    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """One prediction for each of `rows`, in their order.

        `inference_id` becomes the event id of the first row, and with #1, #2, ... appended those of
        the others. Without it the endpoint chooses new ones. The same id with the same rows is
        captured once, and answered as it was the first time; with other rows it is refused.

        Raises:
            RefusedError: the endpoint refuses the rows; the error holds its reasons.
            UserError: the endpoint is away or does not answer in time.
        """

    def stop(self) -> None:
        """End the endpoint, finishing what it has begun; nothing happens if none runs."""
