"""Data of the dashboard: metrics of the newest windows, deployments and rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName

_UNUSED = {
    MetricName.ROW_RATE,
    MetricName.SILENCE,
    MetricName.DRIFT_P_VALUE,
    MetricName.DRIFT_E_VALUE,
}
NAMES = tuple(name for name in MetricName if name not in _UNUSED)
"""The metrics that the page shows."""


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
