"""What a model is trained on: the base data, and captures whose truth has become known since.

Where hardly two rows of the base data have equal inputs, inputs tell an individual: rows with equal
inputs are one row, and the newest ground truth counts, over the base data's too. A share of the
inputs is put aside by a hash of their values, so that a comparison of versions rests on rows that
this training has not seen, and no later one either. Where inputs recur, as with few distinct ones,
each capture is an individual of its own: captures are added, none replaces another row, and the
hash is one of the event id.

Where the truth has changed, what was known before is wrong: neither the base data nor the windows
before the change are trained on then.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlschool_dagster.dataset.contract import rows_in_breach
from mlschool_dagster.dataset.spec import PREDICTION, DataSpec
from mlschool_dagster.modeling.features import input_frame, new_transformer
from mlschool_dagster.modeling.label_trust import (
    LabelSource,
    Truth,
    judge_sources,
    new_truth_since,
    trusted_rows,
    truth_told,
)

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT_SHARE = 0.3
"""Share of the captured inputs that is put aside."""

MAXIMUM_RECURRING = 0.1
"""Share of the base data's rows whose inputs an earlier row has, above which inputs recur."""
NOISE_ROWS = 2000
"""Most rows of the base data whose neighbours are looked for."""

_BITS = 32


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows to train on and rows put aside, with where they come from.

    Attributes:
        training: the spec's inputs and target. Rows of the base data come first, as they were and
            under their index; the index of captures is the event id.
        held_out: labelled captures that ``training`` has not; with other inputs than any of its
            rows, unless inputs recur.
        recurring: whether inputs recur, so that each capture is an individual.
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
    recurring: bool
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
    recurring = bool(base_keys.duplicated().mean() > MAXIMUM_RECURRING)
    compared = _compared(kept, base, base_keys, keys, spec)
    noise = truth_noise(base, base_keys, spec) if compared["repeated"].any() else 0.0
    sources = judge_sources(compared, noise)
    believed = trusted_rows(kept, sources)
    truth = truth_told(sources)
    if truth is Truth.DOUBTFUL and accept_new_truth:
        truth = Truth.CHANGED
    individuals = kept.index.to_series().map(_digest) if recurring else keys
    captures, known, known_keys = kept[believed].assign(key=individuals[believed]), base, base_keys
    if truth is Truth.CHANGED:
        since = new_truth_since(compared[believed], noise)
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
        recurring=recurring,
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
    return pd.Series(
        [_digest(row) for row in zip(*cells, strict=True)], index=frame.index, dtype=object
    )


def truth_noise(base: "pd.DataFrame", keys: "pd.Series[str]", spec: DataSpec) -> float:
    """How often two rows of `base` with equal inputs (`keys`) differ in their truth, about.

    For a row whose inputs no other has, the nearest one stands in: the error of the nearest
    neighbour tends to just that share (Cover and Hart 1967), and is larger where rows are sparse.
    """
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    truth = base[spec.target.name].to_numpy(dtype=object)
    if len(base) < 2:
        return 0.0
    rows = keys.groupby(keys.to_numpy()).transform("size").to_numpy()
    same = keys.groupby([keys.to_numpy(), truth]).transform("size").to_numpy()
    # Among rows with equal inputs: each beside all others of them.
    disagreement = np.where(rows > 1, (rows - same) / np.maximum(rows - 1, 1), 0.0)
    single = np.flatnonzero(rows == 1)
    single = single[:: max(1, len(single) // NOISE_ROWS)]
    if len(single):
        features = new_transformer(spec).fit_transform(input_frame(base, spec))
        _, found = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features[single])
        nearest = np.where(found[:, 0] == single, found[:, 1], found[:, 0])
        disagreement[rows == 1] = float((truth[nearest] != truth[single]).mean())
    return float(disagreement.mean())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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
    """Each label beside what was predicted, and beside the base data's truth of the same inputs.

    Of several rows of the base data with these inputs, captures meet one after the other.
    """
    label = labelled[spec.target.name]
    known: dict[str, list[str]] = {}
    for key, truth in zip(base_keys, base[spec.target.name], strict=True):
        known.setdefault(key, []).append(truth)
    met = keys.groupby(keys.to_numpy()).cumcount()
    truths = [
        known[key][at % len(known[key])] if key in known else None
        for key, at in zip(keys, met, strict=True)
    ]
    repeated = keys.isin(known)
    return labelled[["source", "window"]].assign(
        wrong=label != labelled[PREDICTION],
        repeated=repeated,
        contradicted=repeated & (label != truths),
    )
