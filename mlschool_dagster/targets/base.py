"""What every target of a deployment can do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from mlschool_dagster.values import InputValue

Progress = Callable[[str], None]
"""Told one sentence at each step of something that takes a while."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """Which version an endpoint serves, where, and since when.

    ``details`` are what else an operator wants to know of this kind of target (a process id and a
    log file, or a cloud resource's name), by label.
    """

    name: str
    url: str
    version: str
    since: datetime
    details: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """An endpoint's answer for one row; ``probabilities`` maps each class to its probability."""

    prediction: str
    confidence: float
    probabilities: dict[str, float]
    event_id: str
    model_version: str


class EndpointTarget(Protocol):
    """One endpoint in one place: a process of this machine, or a managed service."""

    def deploy(
        self,
        version: str,
        folder: Path,
        progress: Progress,
        verify: Callable[[], None] = lambda: None,
    ) -> EndpointStatus:
        """Make `version`, whose compiled model is in `folder`, the one that serves.

        Returns once a real prediction of that version came back and `verify`, called then, had
        nothing to object, however long the target takes; no request fails meanwhile. If anything
        raises, `verify` included, the version before serves on; without one, nothing does.

        Raises:
            UserError: the version cannot be served, or the target not be reached.
        """

    def status(self) -> EndpointStatus | None:
        """What serves now; None if nothing does."""

    def invoke(
        self, rows: Sequence[Mapping[str, InputValue]], inference_id: str | None = None
    ) -> list[Prediction]:
        """One prediction for each of `rows`, in their order.

        `inference_id` becomes the event id of a single row, and with -0, -1, ... appended those of
        several rows. Without it the endpoint chooses new ones. The same id with the same rows is
        captured once.

        Raises:
            RefusedError: the endpoint refuses the rows; the error holds its reasons.
            UserError: the endpoint is away or does not answer in time.
        """

    def stop(self) -> None:
        """End the endpoint, finishing what it has begun; nothing happens if none runs."""
