"""What a dashboard is made from: the metrics of its windows, and what happened meanwhile."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import TOGETHER
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName

NAMES = (
    MetricName.ROWS,
    MetricName.REFUSED_SHARE,
    MetricName.QUALITY_FINDINGS,
    MetricName.MISSING_SHARE,
    MetricName.OUT_OF_RANGE_SHARE,
    MetricName.NEW_CATEGORY_SHARE,
    MetricName.DUPLICATE_SHARE,
    MetricName.DRIFT_EFFECT,
    MetricName.DRIFT_EVIDENCE,
    MetricName.ESTIMATED_ACCURACY,
    MetricName.REALISED_ACCURACY,
    MetricName.ERROR_SHARE,
    MetricName.ESTIMATE_OF_LABELLED,
    MetricName.CROSS_VALIDATED_ACCURACY,
    MetricName.CHECK,
    MetricName.LABEL_COVERAGE,
    MetricName.LABEL_DELAY,
)
"""The metrics that the page shows."""

PROMOTION = "promotion"
"""The lane of the steps of promotions."""

ALL_COLUMNS = TOGETHER
"""What stands for the column of what is about all of them."""

Subject = tuple[MetricName, str, str]
"""What a series is about: its name, column and segment."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened at ``at`` (UTC): a change of what serves, or a step of a promotion.

    ``lane`` is what it happened to, a role or the promotion; ``by`` is who did it.
    """

    at: datetime
    lane: str
    what: str
    version: str
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Term:
    """The time in which ``version`` was the primary: [since, until), still on if it is None."""

    version: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True)
class Board:
    """All that a dashboard of `model` tells as of `now` (UTC).

    ``metrics`` are in order of their windows, those of all versions together being what is shown;
    ``changes`` and ``promotions`` are in the order in which they happened.
    """

    model: str
    now: datetime
    metrics: Sequence[Metric] = ()
    terms: Sequence[Term] = ()
    changes: Sequence[Event] = ()
    promotions: Sequence[Event] = ()

    @cached_property
    def windows(self) -> list[Window]:
        """Every window of which something is known, in order."""
        return sorted({metric.window for metric in self.metrics})

    @cached_property
    def _series(self) -> dict[Subject, list[Metric]]:
        found: dict[Subject, list[Metric]] = {}
        for metric in self.metrics:
            if metric.version == ALL:
                subject = (metric.name, metric.column, metric.segment)
                found.setdefault(subject, []).append(metric)
        return found

    def series(self, name: MetricName, column: str = ALL, segment: str = ALL) -> list[Metric]:
        """One metric over the windows, of all versions together."""
        return self._series.get((name, column, segment), [])

    def newest(self, name: MetricName) -> Metric | None:
        """The newest value of the metric, over all columns, segments and versions."""
        known = [metric for metric in self.series(name) if metric.value is not None]
        return known[-1] if known else None

    def columns(self, *names: MetricName) -> list[str]:
        """The columns that any of the metrics is told of, in alphabetical order."""
        return sorted({column for name, column, _ in self._series if name in names and column})

    def segments(self, name: MetricName) -> list[str]:
        """The segments that the metric is told of, in alphabetical order."""
        return sorted({segment for of, _, segment in self._series if of == name and segment})

    def findings(self, name: MetricName, window: Window) -> list[str]:
        """The columns in which the metric of `window` is a finding, the largest value first.

        If it is one of no column, but of all together, that is named instead.
        """
        found = [
            metric
            for column in self.columns(name)
            for metric in self.series(name, column)
            if metric.window == window and metric.finding
        ]
        together = [m for m in self.series(name) if m.window == window and m.finding]
        if together and not found:
            return [ALL_COLUMNS]
        return [m.column for m in sorted(found, key=lambda m: -(m.value or 0.0))]


def lasting_since(series: Sequence[Metric]) -> Window | None:
    """The window from which on every value up to the newest is a finding; None if that is none."""
    since = None
    for metric in reversed(series):
        if metric.value is not None and not metric.finding:
            break
        since = metric.window if metric.finding else since
    return since


def share_of_findings(series: Iterable[Metric]) -> tuple[int, int]:
    """How many values of a series are findings, and how many there are."""
    known = [metric for metric in series if metric.value is not None]
    return sum(metric.finding for metric in known), len(known)
