"""Data of the dashboard: metrics of the newest windows, deployments, and errors of segments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.monitoring.statistics import wilson_interval

_UNUSED = {
    MetricName.ROW_RATE,
    MetricName.SILENCE,
    MetricName.DRIFT_P_VALUE,
    MetricName.DRIFT_E_VALUE,
}
NAMES = tuple(name for name in MetricName if name not in _UNUSED)
"""The metrics that the page shows."""
POOLED_WINDOWS = 168
"""How many windows, the newest, are pooled: a week of hours."""
MINIMUM_ROWS = 30
"""Labelled rows below which a segment is left out."""


@dataclass(frozen=True, slots=True)
class Event:
    """A deployment or a step of a rollout, at `at` (UTC).

    ``subject`` is what it happened to: a role of the endpoint, or ``rollout``; ``by`` is the run or
    the person who did it.
    """

    at: datetime
    subject: str
    what: str
    version: str
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class ServingPeriod:
    """The time [since, until) in which ``version`` was the primary; still so if until is None."""

    version: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True)
class DashboardData:
    """All that the dashboard of `model` shows as of `now` (UTC).

    ``metrics`` are in order of their windows; those of single versions are not shown. ``periods``
    and ``events`` are in order of time.
    """

    model: str
    now: datetime
    metrics: Sequence[Metric] = ()
    periods: Sequence[ServingPeriod] = ()
    events: Sequence[Event] = ()

    @cached_property
    def windows(self) -> list[Window]:
        """Every window with a metric, in order."""
        return sorted({metric.window for metric in self.metrics})

    @cached_property
    def _series(self) -> dict[tuple[MetricName, str, str], list[Metric]]:
        series: dict[tuple[MetricName, str, str], list[Metric]] = {}
        for metric in self.metrics:
            if metric.version == ALL:
                key = (metric.name, metric.column, metric.segment)
                series.setdefault(key, []).append(metric)
        return series

    def series(self, name: MetricName, column: str = ALL, segment: str = ALL) -> list[Metric]:
        """One metric over the windows, of all versions together."""
        return self._series.get((name, column, segment), [])

    def newest(self, name: MetricName) -> Metric | None:
        """The newest known value of a metric, of all columns, segments and versions together."""
        return next((m for m in reversed(self.series(name)) if m.value is not None), None)

    def by_column(self, *names: MetricName) -> dict[str, list[Metric]]:
        """The series of `names` joined, by column in alphabetical order, `ALL` first."""
        columns = sorted({c for name, c, segment in self._series if name in names and not segment})
        return {c: [m for name in names for m in self.series(name, c)] for c in columns}

    def by_segment(self, name: MetricName) -> dict[str, list[Metric]]:
        """The series of a metric by segment, in alphabetical order."""
        segments = sorted(s for of, column, s in self._series if of is name and s and not column)
        return {segment: self.series(name, segment=segment) for segment in segments}


@dataclass(frozen=True, slots=True)
class Segment:
    """Wrong predictions among the labelled ``rows`` of one segment, as in ``role = canary``."""

    name: str
    rows: int
    wrong: int

    @property
    def share(self) -> float:
        """The share of wrong predictions."""
        return self.wrong / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson)."""
        return wilson_interval(self.wrong, self.rows)

    def is_worse_than(self, other: "Segment") -> bool:
        """Whether the interval lies above that of `other`."""
        return self.interval[0] > other.interval[1]


def overall(data: DashboardData) -> Segment | None:
    """The errors of all labelled rows together; None without any."""
    right = _pooled(data, "all rows", data.series(MetricName.REALISED_ACCURACY))
    return Segment(right.name, right.rows, right.rows - right.wrong) if right.rows else None


def worst_first(data: DashboardData) -> list[Segment]:
    """Every segment with at least `MINIMUM_ROWS` labelled rows, the largest error share first."""
    series = data.by_segment(MetricName.ERROR_SHARE).items()
    pooled = (_pooled(data, name.replace("=", " = ", 1), errors) for name, errors in series)
    known = [segment for segment in pooled if segment.rows >= MINIMUM_ROWS]
    return sorted(known, key=lambda segment: (-segment.share, segment.name))


def _pooled(data: DashboardData, name: str, shares: Iterable[Metric]) -> Segment:
    """The rows of the newest windows, and how many of them the shares count."""
    newest = set(data.windows[-POOLED_WINDOWS:])
    known = [(m.value, m.rows) for m in shares if m.value is not None and m.window in newest]
    return Segment(name, sum(n for _, n in known), sum(round(share * n) for share, n in known))
