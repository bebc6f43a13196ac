"""What a model is trained on: the base data, and captures whose truth has become known since.

Rows with equal inputs are one row, and the newest ground truth counts, over the base data's too. A
share of the inputs is put aside by a hash of their values, so that a comparison of versions rests
on rows that this training has not seen, and no later one either.

Where the truth has changed, what was known before is wrong: neither the base data nor the windows
before the change are trained on then.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlschool_dagster.modeling.contract import rows_in_breach
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.label_trust import (
    LabelSource,
    Truth,
    judge_sources,
    new_truth_since,
    trusted_rows,
    truth_told,
)
from mlschool_dagster.modeling.spec import PREDICTION, DataSpec

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT_SHARE = 0.3
"""Share of the captured inputs that is put aside."""

_BITS = 32


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows to train on and rows put aside, with where they come from.

    Attributes:
        training: the spec's inputs and target. Rows of the base data come first, as they were and
            under their index; the index of captures is the event id.
        held_out: labelled captures with other inputs than any row of ``training``.
        base_rows, captured_rows: how many rows of ``training`` come from where.
        replaced: rows of the base data that gave way to a label of the same inputs, to
            ``held_out``, or to a new truth.
        repeated: labelled captures beside a newer one with the same inputs.
        breaches: labelled captures that break the contract, and were left out.
        distrusted: those of sources that are not believed, left out as well.
        outdated: those from before the truth changed, left out as well.
        sources: who labelled.
        truth: what the labels say of the base data's truth.
    """

    training: "pd.DataFrame"
    held_out: "pd.DataFrame"
    base_rows: int
    captured_rows: int
    replaced: int
    repeated: int
    breaches: int
    distrusted: int
    outdated: int
    sources: tuple[LabelSource, ...]
    truth: Truth


def training_data(
    base: "pd.DataFrame",
    labelled: "pd.DataFrame",
    spec: DataSpec,
    held_out_share: float = HELD_OUT_SHARE,
    *,
    accept_new_truth: bool = False,
) -> TrainingData:
    """`base` (the spec's inputs and target) with `labelled` captures; without any, `base` as it is.

    Columns of `labelled`: ``event_id``, ``window``, ``captured_at``, ``labelled_at``, ``source``,
    the spec's inputs and target (the label), and ``prediction``. If a single source contradicts
    `base`, the truth is `Truth.DOUBTFUL` and nobody should train on the result, unless
    `accept_new_truth` says that somebody has verified the labels.
    """
    import pandas as pd

    columns = [*spec.input_names, spec.target.name]
    kept = labelled.drop(index=rows_in_breach(labelled, spec)).set_index("event_id")
    base_keys, keys = input_keys(base, spec), input_keys(kept, spec)
    compared = _compared(kept, base, base_keys, keys, spec)
    sources = judge_sources(compared)
    believed = trusted_rows(kept, sources)
    truth = truth_told(sources)
    if truth is Truth.DOUBTFUL and accept_new_truth:
        truth = Truth.CHANGED
    captures, known, known_keys = kept[believed].assign(key=keys[believed]), base, base_keys
    if truth is Truth.CHANGED:
        since = new_truth_since(compared[believed])
        captures, known, known_keys = captures[captures["window"] >= since], base[:0], base_keys[:0]
    captures = captures.sort_values(["labelled_at", "captured_at"], kind="stable")
    newest = captures.drop_duplicates("key", keep="last")
    newest = newest.sort_values("captured_at", kind="stable")
    aside = is_held_out(newest["key"], held_out_share)
    remaining = known[~known_keys.isin(newest["key"])]
    chosen = newest.loc[~aside, columns]
    return TrainingData(
        training=pd.concat([remaining, chosen]) if len(newest) else base,
        held_out=newest.loc[aside, columns],
        base_rows=len(remaining),
        captured_rows=len(chosen),
        replaced=len(base) - len(remaining),
        repeated=len(captures) - len(newest),
        breaches=len(labelled) - len(kept),
        distrusted=int((~believed).sum()),
        outdated=int(believed.sum()) - len(captures),
        sources=tuple(sources),
        truth=truth,
    )


def input_keys(frame: "pd.DataFrame", spec: DataSpec) -> "pd.Series[str]":
    """A SHA-256 of each row's inputs, equal for equal values however they were written."""
    import pandas as pd

    # Adding zero turns -0.0 into 0.0, which equals it but is written otherwise.
    cells = [
        (values + 0.0 if values.dtype == "float64" else values).tolist()
        for _, values in input_frame(frame, spec).items()
    ]
    digests = [
        hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in zip(*cells, strict=True)
    ]
    return pd.Series(digests, index=frame.index, dtype=object)


def is_held_out(keys: "pd.Series[str]", share: float) -> "pd.Series[bool]":
    """Which of `keys` (`input_keys`) belong to the `share` of all possible inputs put aside."""
    bound = share * (1 << _BITS)
    return keys.map(lambda key: int(key[: _BITS // 4], 16) < bound).astype(bool)


def _compared(
    labelled: "pd.DataFrame",
    base: "pd.DataFrame",
    base_keys: "pd.Series[str]",
    keys: "pd.Series[str]",
    spec: DataSpec,
) -> "pd.DataFrame":
    """Each label beside what was predicted, and beside the base data's truth of the same inputs."""
    label = labelled[spec.target.name]
    known = dict(zip(base_keys, base[spec.target.name], strict=True))
    repeated = keys.isin(known)
    return labelled[["source", "window"]].assign(
        wrong=label != labelled[PREDICTION],
        repeated=repeated,
        contradicted=repeated & (keys.map(known) != label),
    )
