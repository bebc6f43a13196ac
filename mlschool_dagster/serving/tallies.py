"""Counts and observations gathered in plain numbers, and written to Prometheus's metrics at times.

One write to a metric that processes share costs more than predicting a row. A tally is not safe for
threads; who owns several holds one lock for all of them.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram

Labels = tuple[str, ...]


class Tally(Protocol):
    """Anything that gathers and is written at times."""

    def flush(self) -> None:
        """Write what has gathered since the last time."""


class Counts:
    """The counter `name` of `registry`; Prometheus appends ``_total`` to its name."""

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._counter = Counter(name, meaning, labels, registry=registry)
        self._counts: defaultdict[Labels, int] = defaultdict(int)

    def add(self, labels: Labels, count: int = 1) -> None:
        """Count `count` events with the values `labels`."""
        self._counts[labels] += count

    def flush(self) -> None:
        """Write what has gathered since the last time."""
        for labels, count in self._counts.items():
            (self._counter.labels(*labels) if labels else self._counter).inc(count)
        self._counts.clear()


class Observations:
    """The histogram `name` of `registry` with buckets up to each of `bounds`, and one above."""

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._histogram = _Histogram(name, meaning, labels, buckets=bounds, registry=registry)
        self._bounds = bounds
        self._counts: dict[Labels, list[int]] = {}
        self._totals: defaultdict[Labels, float] = defaultdict(float)

    def add(self, labels: Labels, values: Sequence[float]) -> None:
        """Observe `values` with the label values `labels`."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
        self._totals[labels] += sum(values)

    def flush(self) -> None:
        """Write what has gathered since the last time."""
        for labels, counts in self._counts.items():
            histogram = self._histogram.labels(*labels) if labels else self._histogram
            histogram.add(counts, self._totals[labels])
        self._counts.clear()
        self._totals.clear()


class _Histogram(Histogram):
    """A histogram that takes many observations at the price of one."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts` observations, by bucket, whose sum is `total`."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)
