"""A window's captures as one flat table, shaped like the reference that a version is packaged with.

Both tables have the spec's inputs, ``prediction``, ``confidence`` and one ``probability_<class>``
column a class; the reference also has the target.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import (
    CONFIDENCE,
    PREDICTION,
    ROLE,
    SAMPLING_SHARE,
    DataSpec,
    probability_column,
)

if TYPE_CHECKING:
    import pandas as pd


def current_frame(captures: "pd.DataFrame", spec: DataSpec) -> "pd.DataFrame":
    """The captures of a window (as `CaptureStore.read` gives them), one row an event, flattened.

    Columns: ``event_id``, ``captured_at``, ``endpoint``, ``model_version``, ``role`` (string),
    ``sampling_share``; the spec's inputs, numeric ones as float, categorical ones as string or
    None; ``prediction``, ``confidence``, ``probability_<class>``. What was received for a numeric
    column and is no number is missing.
    """
    import pandas as pd

    inputs = pd.DataFrame.from_records(captures["inputs"].tolist(), columns=spec.input_names)
    probabilities = pd.DataFrame.from_records(
        captures["probabilities"].tolist(), columns=list(spec.target.classes)
    )
    columns: dict[str, pd.Series] = {
        name: captures[name].reset_index(drop=True)
        for name in ("event_id", "captured_at", "endpoint", "model_version")
    }
    columns[ROLE] = captures[ROLE].map(str).reset_index(drop=True)
    columns[SAMPLING_SHARE] = captures[SAMPLING_SHARE].reset_index(drop=True).astype(float)
    for numeric in spec.numeric:
        columns[numeric.name] = pd.to_numeric(inputs[numeric.name], errors="coerce").astype(float)
    for categorical in spec.categorical:
        columns[categorical.name] = _text(inputs[categorical.name])
    columns[PREDICTION] = captures[PREDICTION].reset_index(drop=True)
    columns[CONFIDENCE] = captures[CONFIDENCE].reset_index(drop=True).astype(float)
    for label in spec.target.classes:
        columns[probability_column(label)] = probabilities[label].astype(float)
    return pd.DataFrame(columns)


def event_hashes(events: "pd.Series[Any]") -> npt.NDArray[np.int64]:
    """A number for each event id, the same for the same id within a process.

    No two of a million hashes of 64 bits are equal by chance, but for one time in 10^7; and no
    client can make them so, because Python draws the key of its hashes anew for each process.
    """
    return np.fromiter(map(hash, events), dtype=np.int64, count=len(events))


def _text(values: "pd.Series[Any]") -> "pd.Series[Any]":
    text = values.map(str, na_action="ignore").astype(object)
    text[text.isna()] = None
    return text
