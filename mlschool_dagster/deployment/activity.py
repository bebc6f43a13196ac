"""Activity of an endpoint in a span of time: requests, errors, refusals, latency.

The local endpoint counts by Prometheus metrics. Counters and histograms only grow while a server
runs, so that what happened in a span is the difference between two readings.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

REQUESTS = "mlschool_requests"
LATENCY = "mlschool_request_duration_seconds"
QUEUE = "mlschool_capture_queue_depth"
SPILL = "mlschool_spill_bytes"
QUANTILES = (0.5, 0.95, 0.99)

Buckets = Mapping[str, float]
"""How many observations were at most each bound, by the bound's text, as Prometheus counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Activity of an endpoint, or of one version on it, in a span of time.

    ``errors`` are answers 5xx, ``refusals`` answers 4xx. ``latency`` has the `QUANTILES` of the
    seconds from request to answer, refusals excluded; it is empty if nothing is known.
    ``by_version`` has the part of each version that a request reached, as far as that is known.
    ``gauges`` are other figures of this kind of endpoint at the end of the span, by name.
    """

    requests: float = 0.0
    errors: float = 0.0
    refusals: float = 0.0
    latency: Mapping[float, float] = field(default_factory=dict)
    by_version: Mapping[str, "Activity"] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)

    @property
    def error_share(self) -> float:
        """The share of requests that were answered 5xx; 0 without a request."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading of an endpoint's metrics at one time, over all of its workers.

    ``requests`` counts requests by version and status, ``latency`` is the histogram of their
    seconds by version, both since the server's start; the version is empty where none was chosen.
    ``waiting`` are requests whose captures are not yet durable, ``spilled`` the bytes in its
    write-ahead log.
    """

    requests: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    latency: Mapping[str, Buckets] = field(default_factory=dict)
    waiting: float = 0.0
    spilled: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The reading as JSON-compatible data; `Reading.from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Reading":
        """Read what `to_dict` wrote.

        Raises:
            TypeError: it is something else.
        """
        return cls(**document)


def read_metrics(exposition: str) -> Reading:
    """Read `exposition`, Prometheus's text format; what it does not name is zero.

    Raises:
        ValueError: it is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(exposition)}

    def sums(family: str, sample: str, label: str) -> dict[str, dict[str, float]]:
        """The samples' sums by version and `label`."""
        totals: dict[str, dict[str, float]] = {}
        for line in families[family].samples if family in families else ():
            # What is refused before it reaches a version takes as long as its client likes.
            is_answered = family != LATENCY or line.labels.get("role", "any")
            if line.name == sample and is_answered:
                of_version = totals.setdefault(line.labels.get("version", ""), {})
                key = line.labels.get(label, "")
                of_version[key] = of_version.get(key, 0.0) + line.value
        return totals

    def total(family: str) -> float:
        return sum(sum(counts.values()) for counts in sums(family, family, "").values())

    return Reading(
        requests=sums(REQUESTS, f"{REQUESTS}_total", "status"),
        latency=sums(LATENCY, f"{LATENCY}_bucket", "le"),
        waiting=total(QUEUE),
        spilled=total(SPILL),
    )


def activity_between(readings: Sequence[Reading]) -> Activity:
    """Activity between the first and the last of `readings`, which are in order of time.

    Where a counter went back, the server had been restarted: it is counted from zero, and what
    happened between the last reading and the restart is missing.
    """
    requests: dict[str, dict[str, float]] = {}
    latency: dict[str, dict[str, float]] = {}
    for before, after in pairwise(readings):
        start = Reading() if _restarted(before, after) else before
        _add(requests, after.requests, start.requests)
        _add(latency, after.latency, start.latency)
    versions = {version for version, counts in requests.items() if version and any(counts.values())}
    last = readings[-1] if readings else Reading()
    return _activity(
        requests.values(),
        latency.values(),
        by_version={
            version: _activity([requests[version]], [latency.get(version, {})])
            for version in sorted(versions)
        },
        gauges={"requests_waiting": last.waiting, "spill_bytes": last.spilled},
    )


def _activity(
    requests: Iterable[Mapping[str, float]], latency: Iterable[Buckets], **more: Any
) -> Activity:
    statuses = _added_up(requests)
    buckets = _added_up(latency)
    quantiles = {q: quantile(q, buckets) for q in QUANTILES}
    return Activity(
        requests=sum(statuses.values()),
        errors=sum(count for status, count in statuses.items() if status.startswith("5")),
        refusals=sum(count for status, count in statuses.items() if status.startswith("4")),
        latency={q: seconds for q, seconds in quantiles.items() if seconds is not None},
        **more,
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


Nested = Mapping[str, Mapping[str, float]]


def _restarted(before: Reading, after: Reading) -> bool:
    """Whether a counter went back, which it never does while a server runs."""
    return any(
        later.get(version, {}).get(key, 0.0) < count
        for earlier, later in ((before.requests, after.requests), (before.latency, after.latency))
        for version, counts in earlier.items()
        for key, count in counts.items()
    )


def _add(totals: dict[str, dict[str, float]], after: Nested, before: Nested) -> None:
    for version, counts in after.items():
        known = totals.setdefault(version, {})
        for key, count in counts.items():
            grown = count - before.get(version, {}).get(key, 0.0)
            known[key] = known.get(key, 0.0) + grown


def _added_up(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for each in counts:
        for key, count in each.items():
            totals[key] = totals.get(key, 0.0) + count
    return totals
