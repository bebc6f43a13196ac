"""Backtest of CBPE: compare estimated with realised accuracy, window by window.

Both are of the labelled rows, because labelled rows may be unlike the others. If the realised
accuracy lies outside the 95 % intervals too often, either the confidences are no longer calibrated
or the labels are wrong.
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
    """Whether the estimates hold."""

    HOLD = "they hold"
    FAIL = "they do not hold"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class BacktestedWindow:
    """The estimated and the realised accuracy of a window with enough labels."""

    estimated: Metric
    realised: Metric

    @property
    def window(self) -> Window:
        """The window."""
        return self.realised.window

    @property
    def error(self) -> float:
        """The estimated less the realised accuracy."""
        return (self.estimated.value or 0.0) - (self.realised.value or 0.0)

    @property
    def is_covered(self) -> bool:
        """Whether the realised accuracy lies in the estimate's interval."""
        low, high = self.estimated.lower or 0.0, self.estimated.upper or 0.0
        return low <= (self.realised.value or 0.0) <= high


@dataclass(frozen=True, slots=True)
class BacktestReport:
    """The windows compared, oldest first."""

    windows: tuple[BacktestedWindow, ...]

    @property
    def covered(self) -> int:
        """The number of windows whose interval contains the realised accuracy."""
        return sum(window.is_covered for window in self.windows)

    @property
    def coverage(self) -> float | None:
        """Their share; None without a window."""
        return self.covered / len(self.windows) if self.windows else None

    @property
    def mean_absolute_error(self) -> float | None:
        """The mean absolute error of the estimates; None without a window."""
        if not self.windows:
            return None
        return sum(abs(window.error) for window in self.windows) / len(self.windows)

    @property
    def verdict(self) -> BacktestVerdict:
        """They fail only if the coverage is below `LEAST_COVERAGE` beyond chance (Wilson)."""
        windows = len(self.windows)
        if windows < MINIMUM_WINDOWS:
            return BacktestVerdict.NOT_ENOUGH_DATA
        if wilson_interval(self.covered, windows)[1] < LEAST_COVERAGE:
            return BacktestVerdict.FAIL
        return BacktestVerdict.HOLD

    @property
    def summary(self) -> str:
        """The verdict as one sentence."""
        windows = len(self.windows)
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
                "window": compared.window.key,
                "labelled": compared.realised.rows,
                "estimated_accuracy": compared.estimated.value,
                "estimated_low": compared.estimated.lower,
                "estimated_high": compared.estimated.upper,
                "realised_accuracy": compared.realised.value,
                "realised_low": compared.realised.lower,
                "realised_high": compared.realised.upper,
                "error": compared.error,
                "covered": compared.is_covered,
            }
            for compared in reversed(self.windows)
        ]


def backtest(metrics: Sequence[Metric]) -> BacktestReport:
    """Backtest the metrics of the names `COMPARED`.

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
