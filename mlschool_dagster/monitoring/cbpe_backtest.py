"""Whether the accuracies that were estimated came true, window by window, as labels arrived.

What is compared is the estimate of the labelled rows with what their labels said: labels may be of
rows that are unlike the others. Where they disagree more often than the intervals admit, either the
estimates are wrong, because confidences no longer mean what they meant, or the labels are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.monitoring.segments import SMALL
from mlschool_dagster.monitoring.statistics import wilson_interval

COMPARED = (MetricName.ESTIMATE_OF_LABELLED, MetricName.REALISED_ACCURACY)

MINIMUM_WINDOWS = 10
"""Fewer windows than this could miss half of their intervals by chance."""

LEAST_COVERAGE = 0.9
"""Of intervals at 95 %, with a margin for what no calibration knows of a world that shifts."""


class BacktestVerdict(StrEnum):
    """What can be said of the estimates."""

    HOLD = "they hold"
    FAIL = "they do not hold"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class BacktestedWindow:
    """A window with enough labels: the accuracy they let expect, and the one they showed."""

    estimated: Metric
    realised: Metric

    @property
    def window(self) -> Window:
        """The window."""
        return self.realised.window

    @property
    def error(self) -> float:
        """The estimate less what came true."""
        return (self.estimated.value or 0.0) - (self.realised.value or 0.0)

    @property
    def is_covered(self) -> bool:
        """Whether what came true lies in the estimate's interval."""
        low, high = self.estimated.lower or 0.0, self.estimated.upper or 0.0
        return low <= (self.realised.value or 0.0) <= high


@dataclass(frozen=True, slots=True)
class BacktestReport:
    """The estimates beside what came true, oldest window first."""

    comparisons: tuple[BacktestedWindow, ...]

    @property
    def covered(self) -> int:
        """In how many windows the estimate's interval held what came true."""
        return sum(found.is_covered for found in self.comparisons)

    @property
    def coverage(self) -> float | None:
        """Their share; None without a window."""
        return self.covered / len(self.comparisons) if self.comparisons else None

    @property
    def mean_absolute_error(self) -> float | None:
        """How far estimates were from what came true; None without a window."""
        if not self.comparisons:
            return None
        return sum(abs(found.error) for found in self.comparisons) / len(self.comparisons)

    @property
    def verdict(self) -> BacktestVerdict:
        """They fail only if the coverage is below `LEAST_COVERAGE` beyond chance (Wilson)."""
        windows = len(self.comparisons)
        if windows < MINIMUM_WINDOWS:
            return BacktestVerdict.NOT_ENOUGH_DATA
        if wilson_interval(self.covered, windows)[1] < LEAST_COVERAGE:
            return BacktestVerdict.FAIL
        return BacktestVerdict.HOLD

    @property
    def summary(self) -> str:
        """The verdict as one sentence."""
        windows = len(self.comparisons)
        if self.mean_absolute_error is None or self.verdict is BacktestVerdict.NOT_ENOUGH_DATA:
            return (
                f"Not enough data to judge the estimates: windows with at least {SMALL} labelled "
                f"rows so far: {windows}; a verdict needs {MINIMUM_WINDOWS}."
            )
        held = (
            f"the realised accuracy lay in the estimated interval in {self.covered} of {windows} "
            f"windows, {self.mean_absolute_error:.3f} from the estimate in the mean"
        )
        if self.verdict is BacktestVerdict.HOLD:
            return f"The estimates can be believed: {held}."
        return f"The estimates, or the labels, cannot be believed: {held}."

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping a window, newest first, for a table."""
        return [
            {
                "window": found.window.key,
                "labelled": found.realised.rows,
                "estimated_accuracy": found.estimated.value,
                "estimated_low": found.estimated.lower,
                "estimated_high": found.estimated.upper,
                "realised_accuracy": found.realised.value,
                "realised_low": found.realised.lower,
                "realised_high": found.realised.upper,
                "error": found.error,
                "covered": found.is_covered,
            }
            for found in reversed(self.comparisons)
        ]


def backtest(metrics: Sequence[Metric]) -> BacktestReport:
    """The report of what a history says under the names `COMPARED`.

    Windows with fewer than `SMALL` labelled rows are left out: any estimate would do for them.
    """
    of_all = {
        (metric.window, metric.name): metric
        for metric in metrics
        if metric.segment == ALL and metric.version == ALL and metric.value is not None
    }
    windows = sorted({window for window, _ in of_all})
    pairs = ([of_all.get((window, name)) for name in COMPARED] for window in windows)
    return BacktestReport(
        tuple(
            BacktestedWindow(estimated, realised)
            for estimated, realised in pairs
            if estimated is not None and realised is not None and realised.rows >= SMALL
        )
    )
