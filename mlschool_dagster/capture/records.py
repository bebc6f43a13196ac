"""The capture record and the label record, as rows of an SQL database and as data frames.

In a row, times are whole microseconds since 1970 (UTC), so that a window is a range of integers;
inputs and probabilities are JSON text, so that they are read exactly as they were written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.dataset.spec import InputValue

if TYPE_CHECKING:
    import pandas as pd


SMOKE_TEST_PREFIX = "smoke-test-"
"""Event ids with this prefix are the platform's own probes: kept, but never counted as traffic."""

CAPTURE_FIELDS = (
    "event_id, captured_at, endpoint, model_version, inputs, prediction, confidence, "
    "probabilities, role, sampling_share"
)
CAPTURE_COLUMNS = f"{CAPTURE_FIELDS}, probe"
LABEL_COLUMNS = "event_id, label, labelled_at, source"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
WINDOW_MICROSECONDS = LENGTH // _MICROSECOND


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
    """The ground truth of one capture, given by ``source``; an event's newest label counts."""

    event_id: str
    label: str
    labelled_at: datetime
    source: str


def capture_row(capture: Capture) -> tuple[Any, ...]:
    """The values of a capture's row, in the order of `CAPTURE_COLUMNS`."""
    return (
        capture.event_id,
        microseconds(capture.captured_at),
        capture.endpoint,
        capture.model_version,
        orjson.dumps(capture.inputs).decode(),
        capture.prediction,
        capture.confidence,
        orjson.dumps(capture.probabilities).decode(),
        str(capture.role),
        capture.sampling_share,
        int(capture.event_id.startswith(SMOKE_TEST_PREFIX)),
    )


def capture_of(row: Sequence[Any]) -> Capture:
    """The capture in a row that begins with `CAPTURE_FIELDS`."""
    return Capture(
        event_id=row[0],
        captured_at=instant_of(row[1]),
        endpoint=row[2],
        model_version=row[3],
        inputs=orjson.loads(row[4]),
        prediction=row[5],
        confidence=row[6],
        probabilities=orjson.loads(row[7]),
        role=Role(row[8]),
        sampling_share=row[9],
    )


def label_row(label: Label) -> tuple[Any, ...]:
    """The values of a label's row, in the order of `LABEL_COLUMNS`."""
    return (label.event_id, label.label, microseconds(label.labelled_at), label.source)


def window_of(number: int) -> Window:
    """The window that is `number` windows after 1970 began."""
    return Window(_EPOCH + number * LENGTH)


def number_of(window: Window) -> int:
    """How many windows after 1970 began `window` is."""
    return (window.start - _EPOCH) // LENGTH


# The captures of a batch share their instant.
@lru_cache(maxsize=16)
def microseconds(instant: datetime) -> int:
    """How many microseconds after 1970 began `instant` is."""
    # Dividing by a timedelta would take several times as long, and each request pays for it.
    since = instant - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def instant_of(microseconds: int) -> datetime:
    """The instant so many microseconds after 1970 began."""
    return _EPOCH + microseconds * _MICROSECOND


Columns = Mapping[str, Sequence[Any]]
"""Rows of a store, column by column, as they are stored: times in microseconds since 1970 (UTC),
inputs and probabilities as JSON text."""

_NUMBERS = {"confidence", "sampling_share"}


def captures_frame(captures: Iterable[Capture]) -> "pd.DataFrame":
    """One row per capture, one column per field; ``captured_at`` is datetime64, UTC."""
    return _frame(_columns(Capture, captures))


def as_columns(rows: Sequence[Sequence[Any]], fields: str) -> Columns:
    """The columns of `rows` that begin with `fields`, as they are stored; empty without a row."""
    names = fields.split(", ")
    # A row may be longer than its fields.
    return dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=False))


def columns_frame(columns: Columns) -> "pd.DataFrame":
    """`captures_frame` or `labels_frame` of what is stored.

    It makes no record of each row on the way, which would take most of the time.
    """
    parsed: dict[str, Any] = {}
    for name, values in columns.items():
        if name in ("inputs", "probabilities"):
            parsed[name] = parse_objects(values)
        else:
            parsed[name] = _instants(values) if name.endswith("_at") else values
    return _frame(parsed)


def parse_objects(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON objects that `texts` hold, parsed in one go."""
    objects: list[dict[str, Any]] = orjson.loads(f"[{','.join(texts)}]")
    return objects


def labels_frame(labels: Iterable[Label]) -> "pd.DataFrame":
    """One row per label, one column per field; ``labelled_at`` is datetime64, UTC."""
    return _frame(_columns(Label, labels))


def _instants(microseconds: Sequence[int]) -> "pd.DatetimeIndex":
    import numpy as np
    import pandas as pd

    return pd.to_datetime(np.array(microseconds, dtype=np.int64), unit="us", utc=True)


def _columns(record: type[Capture] | type[Label], records: Iterable[Any]) -> dict[str, Any]:
    names = [field.name for field in fields(record)]
    columns = list(zip(*map(attrgetter(*names), records), strict=True)) or [()] * len(names)
    return dict(zip(names, columns, strict=True))


def _frame(columns: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    import pandas as pd

    def series(name: str, values: Sequence[Any]) -> "pd.Series[Any]":
        if name.endswith("_at"):
            return pd.Series(pd.to_datetime(values, utc=True))
        if name in _NUMBERS:
            return pd.Series(values, dtype="float64")
        # A role is plain text, as it is when the frame comes back from a file.
        return pd.Series(map(str, values) if name == "role" else values, dtype="object")

    return pd.DataFrame({name: series(name, values) for name, values in columns.items()})
