"""Whose labels may be trained on, and whether the truth itself has changed.

Sources of labels (people, systems) are judged by each other, with the predictions that were served
as a common yardstick: whoever contradicts them far more often than the other sources did in the
same hours is not believed. That holds while the model is wrong too, because it is then wrong for
all of them. The median source is the measure, so a minority that is wrong is found, however
consistent it is; a majority that agrees on a wrong truth is not. Two sources that differ cannot
both be right: the one nearer to the served model is believed.

A label for the very inputs of a row of the base data contradicts it or not. If believed sources
contradict the base data of late more often than mistakes and noise explain, then either the truth
has changed or the labels are poisoned. One source alone cannot tell these apart; a second one that
saw the same can. Noise is how often two rows with equal inputs have different truths by nature,
which the base data itself tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

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


class Truth(StrEnum):
    """What the labels say of the base data's truth."""

    HOLDS = "holds"
    CHANGED = "changed"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True, slots=True)
class LabelSource:
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


def judge_sources(labelled: "pd.DataFrame", noise: float = 0.0) -> list[LabelSource]:
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


def trusted_rows(labelled: "pd.DataFrame", sources: Sequence[LabelSource]) -> "pd.Series[bool]":
    """Which rows of `labelled` come from a source that is believed."""
    trust = {source.name: source.trusted for source in sources}
    together = trust.get(SMALL_SOURCES, True)
    return labelled["source"].map(lambda name: trust.get(name, together)).astype(bool)


def truth_told(sources: Sequence[LabelSource]) -> Truth:
    """Whether the base data's truth still holds, by the sources that are believed.

    It has changed if two of them see it; a single witness leaves it in doubt.
    """
    witnesses = sum(source.contradicts for source in sources if source.trusted)
    if not witnesses:
        return Truth.HOLDS
    return Truth.CHANGED if witnesses > 1 else Truth.DOUBTFUL


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
) -> LabelSource:
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
    return LabelSource(
        name=name,
        labels=len(rows),
        wrong_predictions=int(rows["wrong"].sum()),
        excess=excess,
        trusted=bool(trusted),
        repeated=int(newest["repeated"].sum()),
        contradicted=int(newest["contradicted"].sum()),
        noise=noise,
    )
