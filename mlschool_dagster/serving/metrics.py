"""What Prometheus reads off the server: every name, its meaning, and how workers add up.

Workers share memory-mapped files in the folder ``PROMETHEUS_MULTIPROC_DIR``, so that any of them
tells of all of them, and what a worker counted outlives it. The variable must be set before this
module is imported; without it a process tells of itself alone.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from math import inf, isfinite

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Metric,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.serving.tallies import Counts, Observations, Tally

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
STARTED = "mlschool_model_started"


class Metrics:
    """The metrics of one process of the endpoint `name`; make one per process, after any fork.

    Counts and observations gather in plain numbers and reach the shared files every
    `FLUSH_SECONDS`, because a write costs more than predicting a row; a process that is killed
    loses what it had gathered. Safe for threads.

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
    ``mlschool_spill_bytes``                                 sum of those alive
    ``mlschool_model_age_seconds``                v, r       oldest of those alive
    ``mlschool_model_info``                       v, r       1 while any alive serves it
    ``mlschool_endpoint_info``                    endpoint   1
    ============================================  =========  ======================================

    Labels: s is ``status``, v ``version``, r ``role``, p ``prediction``.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        registry = CollectorRegistry()
        self._registry = _readable(registry)
        self._requests = Counts(
            "mlschool_requests",
            "Requests answered; no version or role if none was chosen.",
            ("status", *VARIANT),
            registry,
        )
        self._latency = Observations(
            "mlschool_request_duration_seconds",
            "From a request's head to its answer, the body's arrival and the capture included.",
            VARIANT,
            LATENCY_BOUNDS,
            registry,
        )
        self._predictions = Counts(
            "mlschool_predictions",
            "Rows predicted, by predicted class.",
            ("prediction", *VARIANT),
            registry,
        )
        self._confidence = Observations(
            "mlschool_prediction_confidence",
            "Probability of the predicted class.",
            VARIANT,
            CONFIDENCE_BOUNDS,
            registry,
        )
        self._captures = Counts(
            "mlschool_captures",
            "Captures made durable, shadows and repetitions included.",
            (),
            registry,
        )
        self._commit = Observations(
            "mlschool_capture_commit_duration_seconds",
            "A transaction of the capture store or a write of its journal, until on disk.",
            (),
            COMMIT_BOUNDS,
            registry,
        )
        self._refusals = Counts(
            "mlschool_refusals",
            "Requests refused because of what they were, by reason.",
            ("reason",),
            registry,
        )
        self._shadow_failures = Counts(
            "mlschool_shadow_failures",
            "Times that a shadow failed to predict; the answers were given nevertheless.",
            (),
            registry,
        )
        self._tallies: tuple[Tally, ...] = (
            *(self._requests, self._latency, self._predictions, self._confidence),
            *(self._captures, self._commit, self._refusals, self._shadow_failures),
        )
        self._queue = Gauge(
            "mlschool_capture_queue_depth",
            "Requests whose captures wait to be made durable.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._depth = 0
        self._spill = Gauge(
            "mlschool_spill_bytes",
            "Captures in local journals that wait for the store.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._started = Gauge(
            STARTED,
            "Unix time since which a version serves; infinity once it does not.",
            VARIANT,
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._serving: dict[str, str] = {}
        Gauge(
            "mlschool_endpoint_info",
            "The endpoint that this server is.",
            ("endpoint",),
            multiprocess_mode="livemax",
            registry=registry,
        ).labels(name).set(1)
        self._closing = threading.Event()
        self._flushing = threading.Thread(target=self._keep_flushing, name="metrics", daemon=True)
        self._flushing.start()

    def request(self, status: int, version: str, role: str, seconds: float) -> None:
        """Count a request that was answered; `version` and `role` are empty if none was chosen."""
        with self._lock:
            self._requests.add((str(status), version, role))
            self._latency.add((version, role), (seconds,))

    def answer(self, status: int) -> None:
        """Count a request that was refused before anybody looked at what it asks."""
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

    def refused(self, reason: str) -> None:
        """Count a refused request; `reason` is of a closed vocabulary, never of the request."""
        with self._lock:
            self._refusals.add((reason,))

    def shadow_failed(self) -> None:
        """Count a failure of a shadow to predict."""
        with self._lock:
            self._shadow_failures.add(())

    def queue(self, depth: int) -> None:
        """Tell how many requests wait for their captures to be durable."""
        self._depth = depth

    def spill(self, size: int) -> None:
        """Tell the size of this process's journals in bytes."""
        self._spill.set(size)

    def serves(self, role: str, version: str, since: datetime) -> None:
        """Tell that `version` serves in `role`, instead of the version that did."""
        if self._serving.get(role) != version:
            self.retired(role)
            self._serving[role] = version
        self._started.labels(version, role).set(since.timestamp())

    def retired(self, role: str) -> None:
        """Tell that no version serves in `role`."""
        version = self._serving.pop(role, None)
        if version is not None:
            self._started.labels(version, role).set(inf)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics of all workers in Prometheus's text format, and its content type."""
        self._flush()
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Write what has gathered and stop."""
        self._closing.set()
        self._flushing.join()
        self._flush()

    def _keep_flushing(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            for tally in self._tallies:
                tally.flush()
            self._queue.set(self._depth)


def forget_process(pid: int) -> None:
    """Leave the dead worker `pid` out of what is told of those alive; what it counted remains."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Reader(Collector):
    """What `source` collects, with the start of each version turned into its age."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            if metric.name == STARTED:
                yield from _serving(metric)
            else:
                yield metric


def _readable(registry: CollectorRegistry) -> CollectorRegistry:
    source: Collector = registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        source = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    readable = CollectorRegistry()
    readable.register(_Reader(source))
    return readable


def _serving(started: Metric) -> Iterable[Metric]:
    age = GaugeMetricFamily(
        "mlschool_model_age_seconds", "Time since a version serves in its role.", labels=VARIANT
    )
    info = GaugeMetricFamily("mlschool_model_info", "1 for each version served.", labels=VARIANT)
    now = time.time()
    for sample in started.samples:
        # Shared files never forget a label, so that an end is a value of its own.
        if isfinite(sample.value):
            variant = [sample.labels[label] for label in VARIANT]
            age.add_metric(variant, max(0.0, now - sample.value))
            info.add_metric(variant, 1)
    return age, info
