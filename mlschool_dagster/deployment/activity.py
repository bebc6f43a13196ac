"""How an endpoint does, read off its Prometheus metrics.

Counters and histograms only ever grow while a server runs, so what happened lately is the
difference between two readings.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

REQUESTS = "mlschool_requests"
LATENCY = "mlschool_request_duration_seconds"
QUEUE = "mlschool_capture_queue_depth"
SPILL = "mlschool_spill_bytes"

Buckets = Mapping[str, float]
"""How many observations were at most each bound, by the bound's text, as Prometheus counts them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an endpoint's metrics said at one time, over all of its workers.

    ``requests`` counts requests by status and ``latency`` is the histogram of their seconds, both
    since the server's start; ``waiting`` are requests whose captures are not yet durable,
    ``spilled`` the bytes in its write-ahead log.
    """

    requests: dict[str, float]
    latency: dict[str, float]
    waiting: float
    spilled: float

    def to_dict(self) -> dict[str, Any]:
        """The reading as JSON-compatible data; `Reading.from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Reading":
        """A reading from plain data.

        Raises:
            TypeError: it is not one.
        """
        return cls(**document)


def read_metrics(exposition: str) -> Reading:
    """The reading in `exposition`, Prometheus's text format; what it does not name is zero.

    Raises:
        ValueError: it is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(exposition)}

    def sums(family: str, sample: str, label: str) -> dict[str, float]:
        totals: dict[str, float] = {}
        for found in families[family].samples if family in families else ():
            # What is refused before a version has looked at it takes as long as its client likes.
            is_answered = family != LATENCY or found.labels.get("role", "any")
            if found.name == sample and is_answered:
                key = found.labels.get(label, "")
                totals[key] = totals.get(key, 0.0) + found.value
        return totals

    return Reading(
        requests=sums(REQUESTS, f"{REQUESTS}_total", "status"),
        latency=sums(LATENCY, f"{LATENCY}_bucket", "le"),
        waiting=sum(sums(QUEUE, QUEUE, "").values()),
        spilled=sum(sums(SPILL, SPILL, "").values()),
    )


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an endpoint did between two readings, or since its start.

    ``errors`` are answers 5xx, ``refused`` answers 4xx; ``latency`` is the histogram of seconds.
    """

    requests: float
    errors: float
    refused: float
    latency: dict[str, float]

    @property
    def error_share(self) -> float:
        """The share of requests that the server failed to answer; 0 without a request."""
        return self.errors / self.requests if self.requests else 0.0


def traffic(now: Reading, before: Reading | None) -> Traffic:
    """What happened between the two readings; since the start if the server has restarted."""
    if before is None or _restarted(now, before):
        requests, latency = now.requests, now.latency
    else:
        requests = _difference(now.requests, before.requests)
        latency = _difference(now.latency, before.latency)

    def answered(kind: str) -> float:
        return sum((n for status, n in requests.items() if status.startswith(kind)), 0.0)

    return Traffic(
        requests=answered(""),
        errors=answered("5"),
        refused=answered("4"),
        latency=dict(latency),
    )


def quantile(q: float, latency: Buckets) -> float | None:
    """The `q`-quantile of a histogram, None if nothing was observed.

    As Prometheus's ``histogram_quantile``: linear within a bucket, the first of which begins at
    zero; the highest finite bound if the quantile lies above it.
    """
    buckets = sorted((float(bound), count) for bound, count in latency.items())
    if not buckets or not buckets[-1][1]:
        return None
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * max(0.0, rank - below) / (count - below)
        lower, below = bound, count
    return lower


def memory_bytes(pid: int) -> float:
    """The resident memory of process `pid` and its descendants; those that have ended have none."""
    import psutil

    try:
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0.0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _restarted(now: Reading, before: Reading) -> bool:
    """Whether a counter went back, which it never does while a server runs."""
    return any(
        current.get(key, 0.0) < count
        for current, earlier in ((now.requests, before.requests), (now.latency, before.latency))
        for key, count in earlier.items()
    )


def _difference(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {key: count - before.get(key, 0.0) for key, count in now.items()}
