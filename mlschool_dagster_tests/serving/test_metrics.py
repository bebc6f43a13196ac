"""Metrics: what Prometheus scrapes equals what happened, over workers and their deaths."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.metrics import CONFIDENCE_BOUNDS, LATENCY_BOUNDS, Metrics
from mlschool_dagster_tests.serving.metrics_process import (
    MetricsProcess,
    Samples,
    metrics_process,
    samples,
)
from mlschool_dagster_tests.serving.server import wait_for

VERSIONS = ("1", "2")
requests = st.tuples(
    st.sampled_from([200, 400, 422, 503]),
    st.sampled_from(["", *VERSIONS]),
    st.sampled_from(["", "primary", "canary"]),
    st.one_of(st.floats(0.0, 20.0), st.sampled_from(LATENCY_BOUNDS)),
)
captures = st.builds(
    Capture,
    event_id=st.just("e"),
    captured_at=st.just(utc_now()),
    endpoint=st.just("test"),
    model_version=st.sampled_from(VERSIONS),
    inputs=st.just({}),
    prediction=st.sampled_from(["a", "b", 'c"\n\\']),
    confidence=st.one_of(st.floats(0.0, 1.0), st.sampled_from(CONFIDENCE_BOUNDS)),
    probabilities=st.just({}),
    role=st.sampled_from(Role),
)

Start = Callable[[], MetricsProcess]


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics("test")
    yield metrics
    metrics.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes that share one folder of metrics."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(metrics_process(tmp_path))


def exposed(metrics: Metrics) -> Samples:
    return samples(metrics.exposition()[0].decode())


def value(of: Samples, name: str, **labels: str) -> float | None:
    return of.get((name, tuple(sorted(labels.items()))))


@settings(max_examples=50)
@given(st.lists(requests, max_size=30))
def test_requests_are_counted_by_what_became_of_them(
    made: list[tuple[int, str, str, float]],
) -> None:
    metrics = Metrics("test")
    for request in made:
        metrics.request(*request)
    metrics.close()
    result = exposed(metrics)
    for (status, version, role), count in Counter(request[:3] for request in made).items():
        labels = {"status": str(status), "version": version, "role": role}
        assert value(result, "mlschool_requests_total", **labels) == count
    for variant in {request[1:3] for request in made}:
        seconds = sorted(request[3] for request in made if request[1:3] == variant)
        labels = {"version": variant[0], "role": variant[1]}
        name = "mlschool_request_duration_seconds"
        assert value(result, f"{name}_sum", **labels) == pytest.approx(sum(seconds))
        assert value(result, f"{name}_count", **labels) == len(seconds)
        for bound in LATENCY_BOUNDS:
            within = sum(s <= bound for s in seconds)
            assert value(result, f"{name}_bucket", le=str(bound), **labels) == within


@settings(max_examples=50)
@given(st.lists(st.lists(captures, max_size=10), max_size=5))
def test_rows_are_counted_by_class_and_confidence(answered: list[list[Capture]]) -> None:
    metrics = Metrics("test")
    for rows in answered:
        metrics.predictions(rows)
    metrics.close()
    result = exposed(metrics)
    rows = [capture for captures in answered for capture in captures]
    predicted = Counter((row.prediction, row.model_version, row.role) for row in rows)
    for (prediction, version, role), count in predicted.items():
        labels = {"prediction": prediction, "version": version, "role": role.value}
        assert value(result, "mlschool_predictions_total", **labels) == count
    bounds = [*CONFIDENCE_BOUNDS, float("inf")]
    variants = Counter((row.model_version, row.role) for row in rows)
    for version, role in variants:
        inside = [r.confidence for r in rows if (r.model_version, r.role) == (version, role)]
        for bound in bounds:
            exposed_count = value(
                result,
                "mlschool_prediction_confidence_bucket",
                version=version,
                role=role.value,
                le="+Inf" if bound == float("inf") else str(bound),
            )
            assert exposed_count == sum(
                bisect_left(bounds, c) <= bounds.index(bound) for c in inside
            )


def test_what_was_kept_refused_or_went_wrong_is_reported(metrics: Metrics) -> None:
    metrics.commit(0.004, 7)
    metrics.commit(0.2, 1)
    metrics.rejected("malformed")
    metrics.rejected("too large")
    metrics.rejected("malformed")
    metrics.shadow_failed()
    metrics.queue(5)
    metrics.buffered(4096)
    result = exposed(metrics)
    assert value(result, "mlschool_captures_total") == 8
    assert value(result, "mlschool_capture_commit_duration_seconds_count") == 2
    assert value(result, "mlschool_capture_commit_duration_seconds_bucket", le="0.005") == 1
    assert value(result, "mlschool_refusals_total", reason="malformed") == 2
    assert value(result, "mlschool_refusals_total", reason="too large") == 1
    assert value(result, "mlschool_shadow_failures_total") == 1
    assert value(result, "mlschool_capture_queue_depth") == 5
    assert value(result, "mlschool_spill_bytes") == 4096
    assert value(result, "mlschool_endpoint_info", endpoint="test") == 1


def test_a_version_is_reported_with_its_age_for_as_long_as_it_serves(metrics: Metrics) -> None:
    an_hour_ago = utc_now() - timedelta(hours=1)
    metrics.serves("primary", "1", an_hour_ago)
    metrics.serves("canary", "2", utc_now())
    age = value(exposed(metrics), "mlschool_model_age_seconds", role="primary", version="1")
    assert age == pytest.approx(3600, abs=5)
    metrics.serves("primary", "2", utc_now())
    metrics.retired("canary")
    serving = {labels for name, labels in exposed(metrics) if name == "mlschool_model_info"}
    assert serving == {(("role", "primary"), ("version", "2"))}
    metrics.serves("primary", "1", an_hour_ago)
    assert value(exposed(metrics), "mlschool_model_info", role="primary", version="1") == 1


def test_swapping_back_and_forth_adds_no_series(start: Start) -> None:
    process = start()
    now = utc_now().isoformat()
    swap = [("serves", "primary", version, now) for version in VERSIONS]
    answer = [("request", 200, version, "primary", 0.001) for version in VERSIONS]
    process.count(*swap, *answer)
    before = set(samples(process.exposition()))
    for _ in range(60):
        process.count(*swap, *answer)
    assert set(samples(process.exposition())) == before


def test_workers_add_up_and_any_of_them_reports(start: Start) -> None:
    one, other, reader = start(), start(), start()
    for process, share in ((one, 300), (other, 200)):
        for _ in range(share):
            process.count(("request", 200, "1", "primary", 0.002), ("commit", 0.001, 2))
        process.count(("queue", share), ("buffered", share), ("share",))
        process.exposition()
    result = samples(reader.exposition())
    labels = {"version": "1", "role": "primary"}
    assert value(result, "mlschool_requests_total", status="200", **labels) == 500
    assert value(result, "mlschool_request_duration_seconds_count", **labels) == 500
    assert value(result, "mlschool_captures_total") == 1000
    assert value(result, "mlschool_capture_queue_depth") == 500
    assert value(result, "mlschool_spill_bytes") == 300
    assert value(result, "mlschool_endpoint_info", endpoint="test") == 1


def test_what_a_worker_counts_reaches_the_others_unasked(start: Start) -> None:
    busy, reader = start(), start()
    busy.count(("request", 422, "", "", 0.001))

    def arrived() -> bool:
        result = samples(reader.exposition())
        return value(result, "mlschool_requests_total", status="422", version="", role="") == 1

    wait_for(arrived)


def test_a_dead_worker_leaves_its_counts_and_nothing_else(start: Start) -> None:
    doomed, survivor = start(), start()
    now = utc_now().isoformat()
    doomed.count(("request", 200, "1", "primary", 0.002), ("queue", 9), ("buffered", 9))
    doomed.count(("serves", "primary", "1", now), ("share",))
    doomed.exposition()
    doomed.kill()
    survivor.count(("serves", "primary", "2", now), ("queue", 1), ("forget", doomed.pid))
    result = samples(survivor.exposition())
    labels = {"version": "1", "role": "primary"}
    assert value(result, "mlschool_requests_total", status="200", **labels) == 1
    assert value(result, "mlschool_capture_queue_depth") == 1
    assert value(result, "mlschool_spill_bytes") == 0
    assert value(result, "mlschool_model_info", **labels) is None
    assert value(result, "mlschool_model_info", version="2", role="primary") == 1


def test_a_version_serves_while_any_worker_serves_it_and_is_as_old_as_there(start: Start) -> None:
    ahead, behind = start(), start()
    labels = {"version": "1", "role": "primary"}
    now = utc_now()
    behind.count(("serves", "primary", "1", (now - timedelta(minutes=2)).isoformat()), ("share",))
    behind.exposition()
    ahead.count(("serves", "primary", "1", (now - timedelta(minutes=1)).isoformat()))
    age = value(samples(ahead.exposition()), "mlschool_model_age_seconds", **labels)
    assert age == pytest.approx(120, abs=10)
    ahead.count(("serves", "primary", "2", now.isoformat()), ("share",))
    assert value(samples(ahead.exposition()), "mlschool_model_info", **labels) == 1
    behind.count(("serves", "primary", "2", now.isoformat()))
    assert value(samples(behind.exposition()), "mlschool_model_info", **labels) is None


BROKEN = [
    b"",
    b'{"counted": {"mlschool_requests": [[["200", "1", "pri',
    b"\x00" * 4096,
    b"[]",
    b"7",
    b'{"counted": {}, "serving": [], "queue": "many", "spill": 0}',
    b'{"counted": {"mlschool_requests": [[["200"], [1, 2, 3]]]}, "serving": [], "queue": 0, '
    b'"spill": 0}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_named_and_the_others_are_reported(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, other = Metrics("test", tmp_path), Metrics("test", tmp_path)
    other.rejected("malformed")
    other.close()
    broken = tmp_path / f"{'0' * 32}.worker.json"
    broken.write_bytes(content)
    (tmp_path / "counter_7.db").touch()
    for _ in range(2):
        assert value(exposed(metrics), "mlschool_refusals_total", reason="malformed") == 1
    metrics.close()
    assert [vars(r)["file"] for r in caplog.records] == [str(broken)]


def test_what_cannot_be_written_is_reported_later_and_by_its_own_worker_at_once(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "metrics"
    folder.touch()
    metrics = Metrics("test", folder)
    metrics.rejected("malformed")
    metrics._flush()
    assert value(exposed(metrics), "mlschool_refusals_total", reason="malformed") == 1
    folder.unlink()
    metrics.close()
    other = Metrics("test", folder)
    assert value(exposed(other), "mlschool_refusals_total", reason="malformed") == 1
    other.close()


def test_counting_costs_a_request_little(metrics: Metrics) -> None:
    capture = Capture("e", utc_now(), "test", "1", {}, "a", 0.9, {})
    started = time.process_time()
    for _ in range(5000):
        metrics.queue(1)
        metrics.request(200, "1", "primary", 0.002)
        metrics.predictions([capture])
        metrics.commit(0.001, 1)
    # Ten times what it takes, so that a busy machine does not fail it.
    assert (time.process_time() - started) / 5000 < 50e-6
