"""Who is served worst: error shares of segments, pooled over windows."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlschool_dagster.monitoring.dashboard.board import Board
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.monitoring.statistics import wilson_interval

POOLED_WINDOWS = 168
"""How many windows, the newest, are added up: a week of hours."""
MINIMUM_ROWS = 30
"""Labelled rows below which a segment is not compared."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Errors among the labelled ``rows`` of one segment, with the 95 % interval of their share."""

    column: str
    value: str
    rows: int
    wrong: int

    @property
    def share(self) -> float:
        """The share of its rows that were predicted wrongly."""
        return self.wrong / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson)."""
        return wilson_interval(self.wrong, self.rows)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The worst and the best served segment of one column.

    They differ ``clearly`` if their intervals do not overlap.
    """

    worst: Segment
    best: Segment

    @property
    def gap(self) -> float:
        """By how much the error share of the worst is above that of the best."""
        return self.worst.share - self.best.share

    @property
    def clearly(self) -> bool:
        """Whether their intervals are apart."""
        return self.worst.interval[0] > self.best.interval[1]


def overall(board: Board) -> Segment | None:
    """The errors of all labelled rows together; None without any."""
    first = _first_pooled(board)
    metrics = [m for m in board.series(MetricName.REALISED_ACCURACY) if m.window.key >= first]
    rows = sum(metric.rows for metric in metrics if metric.value is not None)
    wrong = sum(round((1 - m.value) * m.rows) for m in metrics if m.value is not None)
    return Segment(ALL, ALL, rows, wrong) if rows else None


def worst_first(board: Board) -> list[Segment]:
    """Every segment with enough labelled rows, the one with the largest error share first."""
    first = _first_pooled(board)
    found = []
    for name in board.segments(MetricName.ERROR_SHARE):
        series = board.series(MetricName.ERROR_SHARE, segment=name)
        rows, wrong = _pooled([metric for metric in series if metric.window.key >= first])
        if rows >= MINIMUM_ROWS:
            column, _, value = name.partition("=")
            found.append(Segment(column, value, rows, wrong))
    return sorted(found, key=lambda segment: (-segment.share, segment.column, segment.value))


def comparisons(segments: Sequence[Segment]) -> list[Comparison]:
    """Worst against best of each column with several of `segments`, the widest gap first."""
    found = []
    for column in sorted({segment.column for segment in segments}):
        of_column = [segment for segment in segments if segment.column == column]
        if len(of_column) > 1:
            found.append(Comparison(of_column[0], of_column[-1]))
    return sorted(found, key=lambda comparison: -comparison.gap)


def _first_pooled(board: Board) -> str:
    newest = board.windows[-POOLED_WINDOWS:]
    return newest[0].key if newest else ""


def _pooled(series: Sequence[Metric]) -> tuple[int, int]:
    known = [(metric.value, metric.rows) for metric in series if metric.value is not None]
    return sum(rows for _, rows in known), sum(round(value * rows) for value, rows in known)
