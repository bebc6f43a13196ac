"""What is inside a capture store's SQLite file: its tables, and records as their rows.

Times are whole microseconds since 1970 (UTC), so that a window is a range of integers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Capture, Label
from mlschool_dagster.capture.windows import LENGTH, Window

SCHEMA_VERSION = 1

# The partial index leaves probes out, so that a window is one range of it. The unique constraint on
# labels makes writing the same label again harmless, and finds an event's newest label.
SCHEMA = (
    """CREATE TABLE store (identity TEXT NOT NULL)""",
    """CREATE TABLE captures (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL UNIQUE,
        captured_at INTEGER NOT NULL,
        endpoint TEXT NOT NULL,
        model_version TEXT NOT NULL,
        inputs TEXT NOT NULL,
        prediction TEXT NOT NULL,
        confidence REAL NOT NULL,
        probabilities TEXT NOT NULL,
        probe INTEGER NOT NULL
    )""",
    """CREATE INDEX traffic_by_time ON captures (captured_at) WHERE probe = 0""",
    """CREATE TABLE labels (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL,
        label TEXT NOT NULL,
        labelled_at INTEGER NOT NULL,
        source TEXT NOT NULL,
        UNIQUE (event_id, labelled_at, label, source)
    )""",
)
CAPTURE_FIELDS = (
    "event_id, captured_at, endpoint, model_version, inputs, prediction, confidence, probabilities"
)
INSERT_CAPTURE = (
    f"INSERT INTO captures ({CAPTURE_FIELDS}, probe) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - constants only
    "ON CONFLICT (event_id) DO NOTHING"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
WINDOW_MICROSECONDS = LENGTH // _MICROSECOND


def capture_row(capture: Capture) -> tuple[Any, ...]:
    """The values of a capture's row, in the order of `INSERT_CAPTURE`."""
    return (
        capture.event_id,
        _microseconds(capture.captured_at),
        capture.endpoint,
        capture.model_version,
        orjson.dumps(capture.inputs).decode(),
        capture.prediction,
        capture.confidence,
        orjson.dumps(capture.probabilities).decode(),
        capture.event_id.startswith(SMOKE_TEST_PREFIX),
    )


def capture_of(row: Sequence[Any]) -> Capture:
    """The capture in a row that begins with `CAPTURE_FIELDS`."""
    return Capture(
        event_id=row[0],
        captured_at=_instant(row[1]),
        endpoint=row[2],
        model_version=row[3],
        inputs=orjson.loads(row[4]),
        prediction=row[5],
        confidence=row[6],
        probabilities=orjson.loads(row[7]),
    )


def label_row(label: Label) -> tuple[Any, ...]:
    """The values of a label's row."""
    return (label.event_id, label.label, _microseconds(label.labelled_at), label.source)


def label_of(row: Sequence[Any]) -> Label:
    """The label in a row of the columns event_id, label, labelled_at, source."""
    return Label(row[0], row[1], _instant(row[2]), row[3])


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _instant(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


def window_of(number: int) -> Window:
    """The window that is `number` windows after 1970 began."""
    return Window(_EPOCH + number * LENGTH)


def bounds_of(window: Window) -> dict[str, int]:
    """The window's start and end in microseconds, as parameters of a query."""
    return {"start": _microseconds(window.start), "end": _microseconds(window.end)}
