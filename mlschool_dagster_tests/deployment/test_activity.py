"""Activity: what happened in a span of time, from counters that only grow."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mlschool_dagster.deployment.activity import (
    LATENCY,
    QUEUE,
    REQUESTS,
    SPILL,
    Activity,
    Reading,
    activity_between,
    quantile,
    read_metrics,
)

BOUNDS = [0.001, 0.005, 0.025, 0.1, 1.0]
latencies = st.lists(st.floats(1e-6, 5.0), min_size=1, max_size=60)


def histogram(seconds: list[float]) -> dict[str, float]:
    bounds = [*BOUNDS, math.inf]
    return {str(bound): float(sum(s <= bound for s in seconds)) for bound in bounds}


def bucket_of(seconds: float) -> int:
    return int(np.searchsorted(BOUNDS, seconds))


@given(latencies, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds: list[float], q: float) -> None:
    estimated = quantile(q, histogram(seconds))
    true = float(np.quantile(seconds, q, method="inverted_cdf"))
    assert estimated is not None
    if bucket_of(true) == len(BOUNDS):
        assert estimated == BOUNDS[-1]
    else:
        assert bucket_of(estimated) == bucket_of(true)


@given(latencies)
def test_quantiles_grow_with_their_rank(seconds: list[float]) -> None:
    result = [quantile(q, histogram(seconds)) or 0.0 for q in (0.0, 0.5, 0.95, 0.99, 1.0)]
    assert result == sorted(result)


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        # Half way through ten observations between 0.1 and 0.2.
        (0.5, {"0.1": 0, "0.2": 10, "+Inf": 10}, 0.15),
        # The first bucket begins at zero.
        (0.5, {"0.1": 10, "+Inf": 10}, 0.05),
        # Nothing is known above the highest finite bound.
        (0.99, {"0.1": 5, "+Inf": 10}, 0.1),
        (0.5, {"0.1": 0, "+Inf": 0}, None),
        (0.5, {}, None),
    ],
)
def test_quantiles_are_those_of_prometheus(
    q: float, counts: dict[str, float], expected: float | None
) -> None:
    result = quantile(q, counts)
    assert result == (None if expected is None else pytest.approx(expected))


def exposition(statuses: dict[str, int], seconds: list[float]) -> str:
    registry = CollectorRegistry()
    requests = Counter(REQUESTS, "Requests", ["status", "version"], registry=registry)
    duration = Histogram(LATENCY, "Duration", buckets=BOUNDS, registry=registry)
    for status, count in statuses.items():
        requests.labels(status, "1").inc(count)
        requests.labels(status, "2").inc(count)
    for value in seconds:
        duration.observe(value)
    Gauge(QUEUE, "Waiting", registry=registry).set(3)
    Gauge(SPILL, "Spilled", registry=registry).set(4096)
    return generate_latest(registry).decode()


def test_an_exposition_is_read_by_version_over_workers() -> None:
    reading = read_metrics(exposition({"200": 5, "422": 1, "503": 2}, [0.002, 0.002, 3.0]))
    assert reading.requests == {
        "1": {"200": 5, "422": 1, "503": 2},
        "2": {"200": 5, "422": 1, "503": 2},
    }
    assert reading.latency[""]["0.005"] == 2
    assert reading.latency[""]["+Inf"] == 3
    assert (reading.waiting, reading.spilled) == (3, 4096)


def test_an_endpoint_that_has_answered_nothing_has_a_reading() -> None:
    assert read_metrics("") == Reading()
    assert activity_between([Reading()]) == activity_between([]) == NOTHING


NOTHING = Activity(gauges={"requests_waiting": 0.0, "spill_bytes": 0.0})
counts = st.dictionaries(st.sampled_from(["200", "422", "500", "503"]), st.integers(0, 50))


def reading_of(statuses: dict[str, int], seconds: list[float], version: str = "1") -> Reading:
    floats = {status: float(count) for status, count in statuses.items()}
    return Reading({version: floats}, {version: histogram(seconds)})


@given(counts, latencies, counts, latencies)
def test_what_happened_in_a_span_is_the_difference(
    first: dict[str, int], early: list[float], then: dict[str, int], late: list[float]
) -> None:
    both = {status: first.get(status, 0) + then.get(status, 0) for status in {**first, **then}}
    before, after = reading_of(first, early), reading_of(both, early + late)
    since = activity_between([before, after])
    assert since.requests == sum(then.values())
    assert since.errors == then.get("500", 0) + then.get("503", 0)
    assert since.refusals == then.get("422", 0)
    assert since.latency[0.5] == quantile(0.5, histogram(late))
    assert sum(activity.requests for activity in since.by_version.values()) == since.requests


@given(st.lists(st.tuples(counts, latencies), min_size=2, max_size=5))
def test_spans_add_up(steps: list[tuple[dict[str, int], list[float]]]) -> None:
    total: dict[str, int] = {}
    seconds: list[float] = []
    readings = [Reading()]
    for statuses, latency in steps:
        total = {s: total.get(s, 0) + statuses.get(s, 0) for s in {**total, **statuses}}
        seconds = seconds + latency
        readings.append(reading_of(total, seconds))
    parts = [activity_between(readings[i : i + 2]) for i in range(len(steps))]
    whole = activity_between(readings)
    assert whole.requests == sum(part.requests for part in parts)
    assert whole.errors == sum(part.errors for part in parts)


def test_counters_that_went_back_are_counted_from_the_restart() -> None:
    before = reading_of({"200": 100}, [0.01] * 100)
    after = reading_of({"200": 7}, [0.01] * 7)
    assert activity_between([before, after]).requests == 7
    assert activity_between([Reading(), before, after]).requests == 107


def test_each_version_has_its_part() -> None:
    before = reading_of({"200": 5}, [0.01] * 5, "1")
    after = Reading(
        {"1": {"200": 5.0}, "2": {"200": 3.0, "500": 1.0}, "": {"401": 2.0}},
        {"1": histogram([0.01] * 5), "2": histogram([0.02] * 4)},
    )
    result = activity_between([before, after])
    assert (result.requests, result.errors, result.refusals) == (6, 1, 2)
    assert set(result.by_version) == {"2"}
    assert (result.by_version["2"].requests, result.by_version["2"].error_share) == (4, 0.25)


def test_a_reading_survives_being_kept() -> None:
    reading = read_metrics(exposition({"200": 1}, [0.01]))
    assert Reading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading


def test_the_time_of_refused_requests_is_none_of_answers() -> None:
    exposition = (
        "# TYPE mlschool_request_duration_seconds histogram\n"
        'mlschool_request_duration_seconds_bucket{version="1",role="primary",le="0.1"} 5\n'
        'mlschool_request_duration_seconds_bucket{version="1",role="primary",le="+Inf"} 5\n'
        'mlschool_request_duration_seconds_bucket{version="",role="",le="0.1"} 0\n'
        'mlschool_request_duration_seconds_bucket{version="",role="",le="+Inf"} 90\n'
    )
    assert read_metrics(exposition).latency == {"1": {"0.1": 5.0, "+Inf": 5.0}}
