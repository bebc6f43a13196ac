"""Counts and observations in plain numbers, which workers hand to each other and add up.

A buffer is not safe for threads; who owns several holds one lock for all of them.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
Numbers = Mapping[Labels, Sequence[float]]
"""What a buffer has counted, by the values of its labels: as many numbers for each."""


class MetricBuffer(Protocol):
    """Anything that counts, under a name of its own."""

    name: str
    numbers: dict[Labels, list[float]]

    def metric(self, numbers: Numbers) -> Metric:
        """`numbers`, added up over workers, as Prometheus wants them."""


class CounterBuffer:
    """The counter `name`; Prometheus appends ``_total`` to its name."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str]) -> None:
        self.name = name
        self.numbers: dict[Labels, list[float]] = {} if labels else {(): [0]}
        self._meaning = meaning
        self._labels = labels

    def add(self, labels: Labels, count: int = 1) -> None:
        """Count `count` events with the values `labels`."""
        numbers = self.numbers.get(labels)
        if numbers is None:
            self.numbers[labels] = [count]
        else:
            numbers[0] += count

    def metric(self, numbers: Numbers) -> Metric:
        """See `MetricBuffer.metric`."""
        family = CounterMetricFamily(self.name, self._meaning, labels=self._labels)
        for labels, (count,) in numbers.items():
            family.add_metric(labels, count)
        return family


class HistogramBuffer:
    """The histogram `name` with buckets up to each of `bounds`, and one above."""

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self.name = name
        self.numbers: dict[Labels, list[float]] = {} if labels else {(): self._nothing(bounds)}
        self._meaning = meaning
        self._labels = labels
        self._bounds = bounds

    def add(self, labels: Labels, values: Sequence[float]) -> None:
        """Observe `values` with the label values `labels`."""
        numbers = self.numbers.get(labels)
        if numbers is None:
            numbers = self.numbers[labels] = self._nothing(self._bounds)
        for value in values:
            numbers[bisect_left(self._bounds, value)] += 1
        numbers[-1] += sum(values)

    def metric(self, numbers: Numbers) -> Metric:
        """See `MetricBuffer.metric`."""
        family = HistogramMetricFamily(self.name, self._meaning, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, (*counts, total) in numbers.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=total)
        return family

    @staticmethod
    def _nothing(bounds: Sequence[float]) -> list[float]:
        """A count for each bucket, and the sum."""
        return [0] * (len(bounds) + 1) + [0.0]


def serialized(numbers: Numbers) -> list[Any]:
    """`numbers` as JSON-compatible data; `summed` reads it back."""
    return [[labels, counted] for labels, counted in numbers.items()]


def summed(documents: Iterable[Sequence[Any]]) -> dict[Labels, list[float]]:
    """The sum of what several workers have `serialized`.

    Raises:
        ValueError, TypeError: one of them is no such thing.
    """
    sums: dict[Labels, list[float]] = {}
    for document in documents:
        for labels, counted in document:
            key = tuple(labels)
            before = sums.get(key)
            sums[key] = (
                [float(number) for number in counted]
                if before is None
                else [one + other for one, other in zip(before, counted, strict=True)]
            )
    return sums
