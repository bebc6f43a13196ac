"""Captures and labels as data frames: the same columns and types from every store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from mlschool_dagster.capture.records import (
    Capture,
    Label,
)

if TYPE_CHECKING:
    import pandas as pd


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
