"""Fairness: equality of error rates across the groups that the spec protects.

Equal error rates are one of several notions of fairness, which exclude each other in general
(Kleinberg, Mullainathan and Raghavan 2016). This one needs labels and predictions alone, whatever
the classes mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from mlschool_dagster.monitoring.segments import MISSING, SMALL, Group
from mlschool_dagster.monitoring.statistics import corrected_z, difference_interval, wilson_interval
from mlschool_dagster.monitoring.thresholds import TOLERATED_DIFFERENCE


class FairnessVerdict(StrEnum):
    """The verdict on the error shares of a protected column's groups."""

    UNEQUAL = "unequal"
    TOLERABLE = "no intolerable difference"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class GroupErrors:
    """The wrong predictions among a group's labelled rows; Wilson's interval of their share."""

    group: str
    labelled: int
    errors: int
    error_share: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Disparity:
    """The largest difference of error shares between two groups of a column.

    ``low`` to ``high`` is Newcombe's interval, which holds for all pairs of groups at once at 95 %
    (Bonferroni). It is unequal if the whole interval lies above what is ``tolerated``.
    """

    worse: str
    better: str
    difference: float
    low: float
    high: float
    tolerated: float

    @property
    def is_unequal(self) -> bool:
        """Whether the difference is larger than tolerated beyond chance."""
        return self.low > self.tolerated


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """The error shares of one protected column; no disparity where too little is labelled."""

    column: str
    groups: tuple[GroupErrors, ...]
    disparity: Disparity | None

    @property
    def verdict(self) -> FairnessVerdict:
        """Unequal only beyond chance."""
        if self.disparity is None:
            return FairnessVerdict.NOT_ENOUGH_DATA
        if self.disparity.is_unequal:
            return FairnessVerdict.UNEQUAL
        return FairnessVerdict.TOLERABLE

    @property
    def summary(self) -> str:
        """The verdict as one sentence."""
        disparity = self.disparity
        if disparity is None:
            return (
                f"Not enough labels to compare errors by {self.column}: two groups with {SMALL} "
                "labelled rows are needed."
            )
        interval = f"[{disparity.low:.1%}, {disparity.high:.1%}]"
        sentence = (
            f"{disparity.worse} errs in {disparity.difference:.1%} {interval} more of its rows "
            f"than {disparity.better}"
        )
        if disparity.is_unequal:
            return f"{sentence}, more than the tolerated {disparity.tolerated:.0%}."
        return f"{sentence}, which is not surely more than the tolerated {disparity.tolerated:.0%}."

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping a group, for a table."""
        return [asdict(group) for group in self.groups]


def fairness(
    columns: Mapping[str, Sequence[Group]],
    protected: Sequence[str],
    tolerated: float = TOLERATED_DIFFERENCE,
) -> tuple[FairnessReport, ...]:
    """The error shares of the groups of each `protected` column among `columns` of segments.

    Pooled groups and rows without a value are shown, and not compared.
    """
    return tuple(
        FairnessReport(
            column,
            tuple(_errors(group) for group in columns[column]),
            _disparity(columns[column], tolerated),
        )
        for column in protected
    )


def _errors(group: Group) -> GroupErrors:
    errors = group.labelled - group.correct
    share = errors / group.labelled if group.labelled else None
    return GroupErrors(
        group.segment, group.labelled, errors, share, *wilson_interval(errors, group.labelled)
    )


def _disparity(groups: Sequence[Group], tolerated: float) -> Disparity | None:
    pairs = list(combinations(_judged(groups), 2))
    z = corrected_z(len(pairs))
    disparities = (
        _difference(*sorted(pair, key=_accuracy), z=z, tolerated=tolerated) for pair in pairs
    )
    return max(
        disparities, key=lambda disparity: (disparity.low, disparity.difference), default=None
    )


def _judged(groups: Sequence[Group]) -> Iterator[Group]:
    for group in groups:
        missing = group.segment.endswith(f"={MISSING}")
        if group.labelled >= SMALL and not group.is_pooled and not missing:
            yield group


def _accuracy(group: Group) -> float:
    return group.correct / group.labelled


def _difference(worse: Group, better: Group, *, z: float, tolerated: float) -> Disparity:
    errors = worse.labelled - worse.correct, better.labelled - better.correct
    low, high = difference_interval(errors[0], worse.labelled, errors[1], better.labelled, z)
    difference = errors[0] / worse.labelled - errors[1] / better.labelled
    return Disparity(worse.segment, better.segment, difference, low, high, tolerated)
