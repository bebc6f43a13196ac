"""Error shares of segments, pooled over the newest windows."""

from collections.abc import Iterable
from dataclasses import dataclass

from mlschool_dagster.monitoring.dashboard.data import DashboardData
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.statistics import wilson_interval

POOLED_WINDOWS = 168
"""How many windows, the newest, are pooled: a week of hours."""
MINIMUM_ROWS = 30
"""Labelled rows below which a segment is left out."""


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
