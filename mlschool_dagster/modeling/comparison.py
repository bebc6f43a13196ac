"""Challenger against champion: both predict the same labelled rows, and the pairs decide.

Three questions, all answered from pairs of predictions for the same row:

- Is the challenger better on captures that it was not trained on? The share of right predictions
  that it has more, with a bootstrap interval over rows (Efron and Tibshirani 1993), and the exact
  test of McNemar (1947): among the rows on which only one of the two is right, a fair coin.
- Is it worse for some part of them, although better on the whole? The same test for each part.
- Has it forgotten what it knew? Out-of-fold predictions of both for rows of the base data; it may
  be worse by less than a margin (non-inferiority). Where the truth has changed, this says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import PREDICTION, DataSpec
from mlschool_dagster.modeling.training_data import input_keys

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.modeling.compiled import CompiledModel

Mask = npt.NDArray[np.bool_]
"""A selection of rows, shape (rows,)."""

RESAMPLES = 10_000
LEVEL = 0.95
MINIMUM_PART = 20
"""Parts with fewer rows are pooled, and not judged if they are fewer even then."""


class ComparisonVerdict(StrEnum):
    """The outcome of a comparison."""

    BETTER = "better"
    NOT_BETTER = "not better"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class ComparisonConfig:
    """Thresholds that a challenger must pass.

    At least ``minimum_rows`` held out; at least ``minimum_accuracy`` on them, and ``minimum_gain``
    beside the champion. ``alpha`` is the chance that an equal one is taken for different, and that
    it is taken for worse in some part. It must surely lose less than ``margin`` of accuracy on the
    base data.
    """

    minimum_rows: int = 50
    minimum_accuracy: float = 0.7
    minimum_gain: float = 0.01
    alpha: float = 0.05
    margin: float = 0.1


@dataclass(frozen=True, slots=True)
class Paired:
    """Two versions on the same rows.

    ``difference`` is the challenger's accuracy less the champion's, [``lower``, ``upper``] its 95 %
    bootstrap interval; ``gained`` and ``lost`` count rows that only the challenger, or only the
    champion, got right; ``p_value`` is that of McNemar's exact two-sided test.
    """

    rows: int
    champion: float
    challenger: float
    difference: float
    lower: float
    upper: float
    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True, slots=True)
class ChallengerComparison:
    """A verdict with what it rests on.

    ``parts`` compares by part of the held-out rows (``column=value``), ``worse_for`` names those
    for which the challenger is worse beyond chance; ``base`` compares on the base data, None
    without common rows. ``overall`` is None without held-out rows.
    """

    verdict: ComparisonVerdict
    summary: str
    overall: Paired | None
    parts: Mapping[str, Paired]
    worse_for: tuple[str, ...]
    base: Paired | None

    @property
    def worst_part(self) -> str | None:
        """The part in which the challenger gains least, or loses most."""
        return min(self.parts, key=lambda name: self.parts[name].difference, default=None)


def compare(
    champion: Mask,
    challenger: Mask,
    parts: Mapping[str, Mask],
    base: Paired | None,
    config: ComparisonConfig,
    *,
    new_truth: bool = False,
) -> ChallengerComparison:
    """The verdict on held-out rows; `parts` are masks over them, `base` is `compare_on_base`'s.

    With `new_truth`, the base data's truth no longer holds, and being worse on it is no fault.
    """
    overall = paired(champion, challenger) if len(champion) else None
    judged = {
        name: paired(champion[rows], challenger[rows])
        for name, rows in parts.items()
        if rows.sum() >= MINIMUM_PART
    }
    worse_for = tuple(
        name
        for name, part in judged.items()
        if part.difference < 0 and part.p_value < config.alpha / len(judged)
    )
    verdict, summary = _verdict(overall, worse_for, None if new_truth else base, config)
    return ChallengerComparison(verdict, summary, overall, judged, worse_for, base)


def paired(champion: Mask, challenger: Mask) -> Paired:
    """Two versions on the same rows, at least one."""
    from scipy.stats import binomtest

    rows = len(champion)
    gained, lost = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    # Resampling rows is drawing how many of them are gained, lost or neither.
    shares = np.array([gained, lost, rows - gained - lost]) / rows
    drawn = np.random.default_rng(rows).multinomial(rows, shares, RESAMPLES)
    outside = (1 - LEVEL) / 2
    lower, upper = np.quantile((drawn[:, 0] - drawn[:, 1]) / rows, [outside, 1 - outside])
    return Paired(
        rows=rows,
        champion=float(champion.mean()),
        challenger=float(challenger.mean()),
        difference=(gained - lost) / rows,
        lower=float(lower),
        upper=float(upper),
        gained=gained,
        lost=lost,
        p_value=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def correct_mask(model: "CompiledModel", held_out: "pd.DataFrame") -> Mask:
    """A mask of the rows of `held_out` (inputs and target) that the model predicts correctly."""
    spec = model.spec
    rows: list[dict[str, Any]] = held_out[spec.input_names].to_dict("records")  # type: ignore[assignment]
    predicted = np.array(spec.target.classes)[model.probabilities(rows).argmax(axis=1)]
    return np.asarray(predicted == held_out[spec.target.name].to_numpy(dtype=str))


def parts_of(held_out: "pd.DataFrame", spec: DataSpec) -> dict[str, Mask]:
    """Masks over the rows by class and by category, ``column=value``; small ones are pooled."""
    masks: dict[str, Mask] = {}
    for name in (spec.target.name, *(column.name for column in spec.categorical)):
        values = held_out[name].astype(object).where(held_out[name].notna(), "missing")
        counts = values.map(values.value_counts())
        values = values.where(counts >= MINIMUM_PART, "other")
        for value in sorted(values.unique()):
            masks[f"{name}={value}"] = (values == value).to_numpy(dtype=bool)
    return masks


def compare_on_base(
    champion: "pd.DataFrame", challenger: "pd.DataFrame", base: "pd.DataFrame", spec: DataSpec
) -> Paired | None:
    """Both on the rows of `base` that both were trained on with their base truth, out of fold.

    `champion` and `challenger` are the references of the versions (`reference_frame`). None if they
    share no such row.
    """
    target = spec.target.name
    outcomes = []
    known = _row_names(base, spec)
    for reference in (champion, challenger):
        names = _row_names(reference, spec)
        own = names.isin(known)
        outcomes.append((reference[PREDICTION] == reference[target])[own].set_axis(names[own]))
    common = outcomes[0].index.intersection(outcomes[1].index)
    if common.empty:
        return None
    before, after = (outcome[common].to_numpy(dtype=bool) for outcome in outcomes)
    return paired(before, after)


def _row_names(frame: "pd.DataFrame", spec: DataSpec) -> "pd.Series[str]":
    """A name of each row by its inputs, its truth, and which of several such rows it is."""
    names = input_keys(frame, spec) + "/" + frame[spec.target.name].astype(str)
    return names + "/" + names.groupby(names).cumcount().astype(str)


def _verdict(
    overall: Paired | None,
    worse_for: tuple[str, ...],
    base: Paired | None,
    config: ComparisonConfig,
) -> tuple[ComparisonVerdict, str]:
    rows = overall.rows if overall else 0
    if overall is None or rows < config.minimum_rows:
        return (
            ComparisonVerdict.NOT_ENOUGH_DATA,
            f"{rows} labelled captures were put aside, {config.minimum_rows} are needed to compare "
            "two versions.",
        )
    objection = _objection(overall, worse_for, base, config)
    figures = (
        f"accuracy {overall.challenger:.3f} against {overall.champion:.3f} on {rows} labelled "
        f"captures put aside (difference {overall.difference:+.3f}, 95 % interval "
        f"{overall.lower:+.3f} to {overall.upper:+.3f}, McNemar p = {overall.p_value:.2g})"
    )
    if objection:
        return ComparisonVerdict.NOT_BETTER, f"The challenger {objection}: {figures}."
    return ComparisonVerdict.BETTER, f"The challenger is better than the champion: {figures}."


def _objection(
    overall: Paired, worse_for: tuple[str, ...], base: Paired | None, config: ComparisonConfig
) -> str | None:
    """The objections to the challenger, the weightiest first."""
    if overall.lower <= 0 or overall.p_value >= config.alpha:
        return "is not better than the champion beyond chance"
    if not meets_thresholds(overall, config):
        return (
            f"gains less than {config.minimum_gain:g} or has an accuracy below "
            f"{config.minimum_accuracy:g}"
        )
    if worse_for:
        return f"is better on the whole but worse for {', '.join(worse_for)}"
    if base is not None and base.lower < -config.margin:
        return (
            f"is better on captures but may lose more than {config.margin:g} on the base data "
            f"({base.difference:+.3f}, interval {base.lower:+.3f} to {base.upper:+.3f})"
        )
    return None


def meets_thresholds(overall: Paired, config: ComparisonConfig) -> bool:
    """Whether MLflow's validation accepts the challenger beside the champion."""
    import mlflow
    from mlflow.models import EvaluationResult, MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    threshold = MetricThreshold(
        threshold=config.minimum_accuracy,
        min_absolute_change=config.minimum_gain,
        greater_is_better=True,
    )
    candidate, baseline = (
        EvaluationResult(metrics={"accuracy": accuracy}, artifacts={})
        for accuracy in (overall.challenger, overall.champion)
    )
    try:
        mlflow.validate_evaluation_results({"accuracy": threshold}, candidate, baseline)
    except ModelValidationFailedException:
        return False
    return True
