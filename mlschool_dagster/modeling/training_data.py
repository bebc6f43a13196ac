"""Training data of the next version: the base data, and captures that have been labelled since.

Where hardly two rows of the base data have equal inputs, inputs identify an individual: rows with
equal inputs are one row, and the newest ground truth counts, over the base data's too. A share of
the inputs is put aside by a hash of their values, so that a comparison of versions rests on rows
that this training has not seen, and no later one either. Where inputs recur, as with few distinct
ones, each capture is an individual of its own: captures are added, none replaces another row, and
the hash is one of the event id.

Sources of labels (people, systems) are judged by each other, with the predictions that were served
as a common yardstick. A source that contradicts them far more often than the other sources did in
the same hours is not trusted. That holds while the model is wrong too, because it is then wrong for
all of them. The median source is the measure: a wrong minority is detected, however consistent it
is; a majority that agrees on a wrong truth is not. Of two sources that differ, the one nearer to
the served model is trusted.

Where trusted sources contradict the base data more often than mistakes and noise explain (which is
how often its rows with equal inputs differ in their truth), either the
truth has changed or the labels are poisoned. One source alone cannot separate the two; a second one
that saw the same can. Where the truth has changed, neither the base data nor the windows before the
change are trained on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mlschool_dagster.dataset.contract import rows_in_breach
from mlschool_dagster.dataset.spec import PREDICTION, DataSpec
from mlschool_dagster.modeling.features import input_frame, new_transformer

if TYPE_CHECKING:
    import pandas as pd

MINIMUM_LABELS = 20
"""Sources with fewer labels are judged together, as `SMALL_SOURCES`."""
SMALL_SOURCES = "small sources"
ALPHA = 0.01
"""Chance of distrusting some honest source, over all of them; and of seeing a change in noise."""
MINIMUM_EXCESS = 0.2
"""How much more often than the median source one must contradict the predictions."""
MAXIMUM_CONTRADICTED = 0.3
"""Share of labels against the base data's truth that mistakes of labellers may explain."""


class TruthStatus(StrEnum):
    """Whether the labels confirm the base data's truth."""

    HOLDS = "holds"
    CHANGED = "changed"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True, slots=True)
class SourceVerdict:
    """A source of labels: how often it contradicts what was predicted, and the base data.

    ``excess`` is the share of predictions contradicted beyond the median source's in the hours that
    both labelled, None without such hours; ``repeated`` counts labels, in the newest window that it
    labelled, for inputs that the base data has as well; ``contradicted`` those of them with another
    truth, and ``noise`` is the share of them that would have another if the truth held and nobody
    made mistakes.
    """

    name: str
    labels: int
    wrong_predictions: int
    excess: float | None
    trusted: bool
    repeated: int
    contradicted: int
    noise: float = 0.0

    @property
    def contradicts(self) -> bool:
        """Whether it contradicts the base data more often than mistakes and noise explain."""
        from scipy.stats import binomtest

        if not self.repeated:
            return False
        test = binomtest(self.contradicted, self.repeated, explained(self.noise), "greater")
        return bool(test.pvalue < ALPHA)


def explained(noise: float) -> float:
    """The share of labels against the base data's truth that mistakes and `noise` explain."""
    return 1 - (1 - MAXIMUM_CONTRADICTED) * (1 - noise)


def judge_sources(labelled: "pd.DataFrame", noise: float = 0.0) -> list[SourceVerdict]:
    """Each source of `labelled`, in order of name; `noise` is that of the base data.

    Columns used: ``source``, ``window``, ``wrong`` (the label is not what was predicted),
    ``repeated`` (the base data has these inputs) and ``contradicted`` (with another truth).
    """
    if labelled.empty:
        return []
    counts = labelled["source"].value_counts()
    small = labelled["source"].map(counts) < MINIMUM_LABELS
    names = labelled["source"].mask(small, SMALL_SOURCES)
    shares = labelled["wrong"].groupby(names).mean().sort_values(kind="stable")
    median = str(shares.index[(len(shares) - 1) // 2])
    return [
        _judged(str(name), rows, labelled[names == median], len(shares), str(name) == median, noise)
        for name, rows in labelled.groupby(names)
    ]


def trusted_rows(labelled: "pd.DataFrame", sources: Sequence[SourceVerdict]) -> "pd.Series[bool]":
    """Which rows of `labelled` come from a trusted source."""
    trust = {source.name: source.trusted for source in sources}
    together = trust.get(SMALL_SOURCES, True)
    return labelled["source"].map(lambda name: trust.get(name, together)).astype(bool)


def truth_status(sources: Sequence[SourceVerdict]) -> TruthStatus:
    """Whether the base data's truth still holds, by the sources that are believed.

    It has changed if two of them see it; a single witness leaves it in doubt.
    """
    witnesses = sum(source.contradicts for source in sources if source.trusted)
    if not witnesses:
        return TruthStatus.HOLDS
    return TruthStatus.CHANGED if witnesses > 1 else TruthStatus.DOUBTFUL


def new_truth_since(compared: "pd.DataFrame", noise: float = 0.0) -> str:
    """The first window of those, up to the newest, whose labels contradict the base data.

    Columns used: those of `judge_sources`, of at least one row.
    """
    repeated = compared[compared["repeated"].astype(bool)]
    shares = repeated.groupby("window")["contradicted"].mean().sort_index(ascending=False)
    since = str(compared["window"].max())
    for window, share in shares.items():
        if share <= explained(noise):
            break
        since = str(window)
    return since


def _judged(
    name: str,
    rows: "pd.DataFrame",
    measure: "pd.DataFrame",
    sources: int,
    is_measure: bool,
    noise: float,
) -> SourceVerdict:
    from scipy.stats import fisher_exact

    # Sources that labelled other hours have seen another world: only common hours compare.
    own = rows.loc[rows["window"].isin(measure["window"]), "wrong"]
    others = measure.loc[measure["window"].isin(rows["window"]), "wrong"]
    excess, trusted = None, True
    if not is_measure and len(own) and len(others):
        excess = float(own.mean() - others.mean())
        table = [[part.sum(), len(part) - part.sum()] for part in (own, others)]
        p_value = fisher_exact(table, alternative="greater")[1]
        trusted = not (excess >= MINIMUM_EXCESS and p_value < ALPHA / (sources - 1))
    newest = rows[rows["window"] == rows["window"].max()]
    return SourceVerdict(
        name=name,
        labels=len(rows),
        wrong_predictions=int(rows["wrong"].sum()),
        excess=excess,
        trusted=bool(trusted),
        repeated=int(newest["repeated"].sum()),
        contradicted=int(newest["contradicted"].sum()),
        noise=noise,
    )


HELD_OUT_SHARE = 0.3
"""Share of the captured inputs that is put aside."""

MAXIMUM_RECURRING = 0.1
"""Share of the base data's rows whose inputs an earlier row has, above which inputs recur."""
NOISE_ROWS = 2000
"""Most rows of the base data whose neighbours are searched."""

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
    sources: tuple[SourceVerdict, ...]
    truth: TruthStatus


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
    `base`, the truth is `TruthStatus.DOUBTFUL` and nobody should train on the result, unless
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
    truth = truth_status(sources)
    if truth is TruthStatus.DOUBTFUL and accept_new_truth:
        truth = TruthStatus.CHANGED
    individuals = kept.index.to_series().map(_digest) if recurring else keys
    captures, known, known_keys = kept[believed].assign(key=individuals[believed]), base, base_keys
    if truth is TruthStatus.CHANGED:
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
    """Estimate how often two rows of `base` with equal inputs (`keys`) differ in their truth.

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
        _, neighbours = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features[single])
        nearest = np.where(neighbours[:, 0] == single, neighbours[:, 1], neighbours[:, 0])
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
