"""The capture record and the label record."""

from dataclasses import dataclass
from datetime import UTC, datetime

from mlschool_dagster.values import InputValue

SMOKE_TEST_PREFIX = "smoke-test-"
"""Event ids with this prefix are the platform's own probes: kept, but never counted as traffic."""


@dataclass(frozen=True, slots=True)
class Capture:
    """One row that the endpoint answered.

    ``captured_at`` is timezone-aware UTC; ``inputs`` is the row as received; ``probabilities`` maps
    each class to its predicted probability, ``confidence`` is that of ``prediction``.
    """

    event_id: str
    captured_at: datetime
    endpoint: str
    model_version: str
    inputs: dict[str, InputValue]
    prediction: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class Label:
    """The ground truth of one capture, told by ``source``; an event's newest label counts."""

    event_id: str
    label: str
    labelled_at: datetime
    source: str


def utc_now() -> datetime:
    """The current time, timezone-aware UTC."""
    return datetime.now(UTC)
