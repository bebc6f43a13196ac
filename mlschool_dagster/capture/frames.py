"""Captures and labels as data frames: the same columns and types from every store."""

from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.records import Capture, Label

if TYPE_CHECKING:
    import pandas as pd


def captures_frame(captures: Iterable[Capture]) -> "pd.DataFrame":
    """One row per capture, one column per field; ``captured_at`` is datetime64, UTC."""
    return _frame(Capture, captures)


def labels_frame(labels: Iterable[Label]) -> "pd.DataFrame":
    """One row per label, one column per field; ``labelled_at`` is datetime64, UTC."""
    return _frame(Label, labels)


def _frame(record: type[Capture] | type[Label], records: Iterable[Any]) -> "pd.DataFrame":
    import pandas as pd

    names = [field.name for field in fields(record)]
    columns: list[tuple[Any, ...]] = list(zip(*map(attrgetter(*names), records), strict=True))
    frame = pd.DataFrame(
        dict(zip(names, columns or [()] * len(names), strict=True)), dtype="object"
    )
    for name in names:
        if name.endswith("_at"):
            frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame.astype({name: "float64" for name in names if name == "confidence"})
