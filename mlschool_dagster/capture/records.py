"""The capture record and the label record."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mlschool_dagster.dataset.spec import InputValue

SMOKE_TEST_PREFIX = "smoke-test-"
"""Event ids with this prefix are the platform's own probes: kept, but never counted as traffic."""


class Role(StrEnum):
    """In which role a version predicted.

    The primary and the canary answer; a shadow predicts on what they answer and never answers
    itself; a candidate is only tested, on probes.
    """

    PRIMARY = "primary"
    CANARY = "canary"
    SHADOW = "shadow"
    CANDIDATE = "candidate"


# Not frozen: that would make it several times as long to build one, and each request pays for it.
@dataclass(slots=True)
class Capture:
    """One row on which the endpoint predicted.

    ``captured_at`` is timezone-aware UTC; ``inputs`` is the row as received; ``probabilities`` maps
    each class to its predicted probability, ``confidence`` is that of ``prediction``. A shadow's
    capture has the event id of the answer it stands beside. ``sampling_share`` is the share of
    requests that were captured then, in (0, 1]: each capture stands for one over it.
    """

    event_id: str
    captured_at: datetime
    endpoint: str
    model_version: str
    inputs: dict[str, InputValue]
    prediction: str
    confidence: float
    probabilities: dict[str, float]
    role: Role = Role.PRIMARY
    sampling_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Label:
    """The ground truth of one capture, told by ``source``; an event's newest label counts."""

    event_id: str
    label: str
    labelled_at: datetime
    source: str
