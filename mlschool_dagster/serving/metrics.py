"""Metrics for Prometheus: every name, its meaning, and how the workers' counts are combined.

Each worker keeps its counts in a file of its own, replaced as a whole twice a second, so that any
worker can answer for all of them, and what a worker counted outlives it. A file that cannot be
written is behind, and one that cannot be read is left out: neither stops a worker.
"""

import json
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.serving.worker_status import LIVING, METRICS_FILES

Labels = tuple[str, ...]
Numbers = Mapping[Labels, Sequence[float]]
"""Counts of a buffer, by the values of its labels: as many numbers for each."""
FLUSH_SECONDS = 0.5
"""How far the shared files may be behind what happened in another worker."""
LATENCY_BOUNDS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03),
    *(0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
COMMIT_BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

VARIANT = ("version", "role")

log = logging.getLogger(__name__)


class Metrics(Collector):
    """The metrics of one process of the endpoint `name`; make one per process, after any fork.

    With `folder` it shares them with the other processes that do; without, it counts for itself
    alone. A process that is killed loses what it counted in the last `FLUSH_SECONDS`. Safe for
    threads.

    ============================================  =========  ======================================
    metric                                        labels     over workers
    ============================================  =========  ======================================
    ``mlschool_requests_total``                   s, v, r    sum, dead ones included
    ``mlschool_request_duration_seconds``         v, r       sum, dead ones included
    ``mlschool_predictions_total``                p, v, r    sum, dead ones included
    ``mlschool_prediction_confidence``            v, r       sum, dead ones included
    ``mlschool_captures_total``                              sum, dead ones included
    ``mlschool_capture_commit_duration_seconds``             sum, dead ones included
    ``mlschool_refusals_total``                   reason     sum, dead ones included
    ``mlschool_shadow_failures_total``                       sum, dead ones included
    ``mlschool_capture_queue_depth``                         sum of those alive: each has its own
    ``mlschool_spill_bytes``                                 most of those alive: they share one
    ``mlschool_model_age_seconds``                v, r       oldest of those alive
    ``mlschool_model_info``                       v, r       1 while any alive serves it
    ``mlschool_endpoint_info``                    endpoint   1
    ============================================  =========  ======================================

    Labels: s is ``status``, v ``version``, r ``role``, p ``prediction``.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._name = name
        self._path = None if folder is None else folder / f"{uuid4().hex}{LIVING}"
        self._content = b""
        self._reported: set[Path] = set()
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._requests = CounterBuffer(
            "mlschool_requests",
            "Requests answered; no version or role if none was chosen.",
            ("status", *VARIANT),
        )
        self._latency = HistogramBuffer(
            "mlschool_request_duration_seconds",
            "From a request's head to its answer, the body's arrival and the capture included.",
            VARIANT,
            LATENCY_BOUNDS,
        )
        self._predictions = CounterBuffer(
            "mlschool_predictions",
            "Rows predicted, by predicted class.",
            ("prediction", *VARIANT),
        )
        self._confidence = HistogramBuffer(
            "mlschool_prediction_confidence",
            "Probability of the predicted class.",
            VARIANT,
            CONFIDENCE_BOUNDS,
        )
        self._captures = CounterBuffer(
            "mlschool_captures",
            "Captures made durable, shadows and duplicates included.",
            (),
        )
        self._commit = HistogramBuffer(
            "mlschool_capture_commit_duration_seconds",
            "A transaction of the capture store or a write of its write-ahead log, until on disk.",
            (),
            COMMIT_BOUNDS,
        )
        self._rejections = CounterBuffer(
            "mlschool_refusals",
            "Requests refused because of what they were, by reason.",
            ("reason",),
        )
        self._shadow_failures = CounterBuffer(
            "mlschool_shadow_failures",
            "Times that a shadow failed to predict; the answers were given nevertheless.",
            (),
        )
        self._buffers: tuple[MetricBuffer, ...] = (
            *(self._requests, self._latency, self._predictions, self._confidence),
            *(self._captures, self._commit, self._rejections, self._shadow_failures),
        )
        self._depth = self._buffered = 0
        self._serving: dict[str, tuple[str, float]] = {}
        self._closing = threading.Event()
        self._flushing = threading.Thread(target=self._keep_flushing, name="metrics", daemon=True)
        self._flushing.start()

    def request(self, status: int, version: str, role: str, seconds: float) -> None:
        """Count a request that was answered; `version` and `role` are empty if none was chosen."""
        with self._lock:
            self._requests.add((str(status), version, role))
            self._latency.add((version, role), (seconds,))

    def answer(self, status: int) -> None:
        """Count a request that was refused before its path was routed."""
        with self._lock:
            self._requests.add((str(status), "", ""))

    def predictions(self, captures: Sequence[Capture]) -> None:
        """Count predicted rows."""
        confidences: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for capture in captures:
            confidences[capture.prediction, capture.model_version, capture.role].append(
                capture.confidence
            )
        with self._lock:
            for labels, observed in confidences.items():
                self._predictions.add(labels, len(observed))
                self._confidence.add(labels[1:], observed)

    def commit(self, seconds: float, captures: int) -> None:
        """Count a transaction that made `captures` durable."""
        with self._lock:
            self._captures.add((), captures)
            self._commit.add((), (seconds,))

    def rejected(self, reason: str) -> None:
        """Count a refused request; `reason` is of a closed vocabulary, never of the request."""
        with self._lock:
            self._rejections.add((reason,))

    def shadow_failed(self) -> None:
        """Count a failure of a shadow to predict."""
        with self._lock:
            self._shadow_failures.add(())

    def queue(self, depth: int) -> None:
        """Set how many requests wait for their captures to be durable."""
        self._depth = depth

    def buffered(self, size: int) -> None:
        """Set the size of the write-ahead log in bytes."""
        self._buffered = size

    def serves(self, role: str, version: str, since: datetime) -> None:
        """Record that `version` serves in `role`, instead of the version that did."""
        with self._lock:
            self._serving[role] = version, since.timestamp()

    def retired(self, role: str) -> None:
        """Record that no version serves in `role`."""
        with self._lock:
            self._serving.pop(role, None)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics of all workers in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`."""
        own = self._state()
        others = list(self._others())
        workers = [own, *others]
        for buffer in self._buffers:
            numbers = [worker["counted"].get(buffer.name, []) for worker in workers]
            yield buffer.metric(summed(numbers))
        alive = [worker for worker in workers if worker["lives"]]
        yield GaugeMetricFamily(
            "mlschool_capture_queue_depth",
            "Requests whose captures wait to be made durable.",
            sum(worker["queue"] for worker in alive),
        )
        yield GaugeMetricFamily(
            "mlschool_spill_bytes",
            "Captures in the local write-ahead log that wait for the store.",
            max(worker["spill"] for worker in alive),
        )
        endpoint = GaugeMetricFamily(
            "mlschool_endpoint_info", "The endpoint that this server is.", labels=["endpoint"]
        )
        endpoint.add_metric([self._name], 1)
        yield endpoint
        yield from _serving(alive)

    def close(self) -> None:
        """Write what has gathered and stop."""
        self._closing.set()
        self._flushing.join()
        self._flush()

    def _keep_flushing(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        if self._path is None:
            return
        content = json.dumps(self._state()).encode()
        if content == self._content:
            return
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self._path)
        except OSError as error:
            # On a full disk the next time may fare better; nothing of what was counted is gone.
            self._report_once(self._path, error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        else:
            self._content = content
            self._reported.discard(self._path)

    def _state(self) -> dict[str, Any]:
        with self._lock:
            return {
                "counted": {buffer.name: serialized(buffer.numbers) for buffer in self._buffers},
                "serving": [[*of, role] for role, of in self._serving.items()],
                "queue": self._depth,
                "spill": self._buffered,
                "pid": os.getpid(),
                "lives": True,
            }

    def _others(self) -> Iterable[dict[str, Any]]:
        """Counts of the other workers, the dead ones included."""
        if self._path is None:
            return
        for path in sorted(self._path.parent.glob(METRICS_FILES)):
            if path == self._path:
                continue
            try:
                state = json.loads(path.read_bytes())
                self._require(state)
            except FileNotFoundError:
                # Its worker has just been forgotten.
                continue
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                self._report_once(path, error)
                continue
            yield {**state, "lives": path.name.endswith(LIVING)}

    def _require(self, state: Mapping[str, Any]) -> None:
        """Make sure that `state` can be added to others'."""
        for buffer in self._buffers:
            buffer.metric(summed([state["counted"].get(buffer.name, [])]))
        _serving([state])
        if state["queue"] + state["spill"] < 0:
            raise ValueError("negative gauges")

    def _report_once(self, path: Path, error: Exception) -> None:
        if path not in self._reported:
            self._reported.add(path)
            log.error(
                "a file of metrics is left out", extra={"file": str(path), "reason": str(error)}
            )


def _serving(workers: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    """Which versions serve anywhere, and since when the first does."""
    started: dict[tuple[str, str], float] = {}
    for worker in workers:
        for version, since, role in worker["serving"]:
            key = str(version), str(role)
            started[key] = min(float(since), started.get(key, float("inf")))
    age = GaugeMetricFamily(
        "mlschool_model_age_seconds", "Time since a version serves in its role.", labels=VARIANT
    )
    info = GaugeMetricFamily("mlschool_model_info", "1 for each version served.", labels=VARIANT)
    now = time.time()
    for variant, since in started.items():
        age.add_metric(variant, max(0.0, now - since))
        info.add_metric(variant, 1)
    return age, info


class MetricBuffer(Protocol):
    """Anything that counts, under a name of its own."""

    name: str
    numbers: dict[Labels, list[float]]

    def metric(self, numbers: Numbers) -> Metric:
        """`numbers`, added up over workers, in the form of Prometheus."""


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
