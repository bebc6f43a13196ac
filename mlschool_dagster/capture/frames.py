"""Captures and labels as data frames: the same columns and types from every store."""

from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.records import Capture, Label

if TYPE_CHECKING:
    import pandas as pd


_NUMBERS = {"confidence", "sampling_share"}


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
        elif name in _NUMBERS:
            frame[name] = frame[name].astype("float64")
        elif name == "role":
            # Plain text, as it is when the frame comes back from a file.
            frame[name] = frame[name].map(str)
    return frame
