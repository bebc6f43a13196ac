"""The history of metrics, in either database: what a report said last of a window counts."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster_tests.monitoring.samples import START

WINDOWS = [Window(START + timedelta(hours=hours)) for hours in range(4)]
REPORT = "drift_report"
FULL = Metric(
    window=WINDOWS[0],
    name=MetricName.DRIFT_EFFECT,
    value=0.25,
    rows=200,
    column="mass",
    segment="role=canary",
    version="3",
    lower=0.125,
    upper=0.5,
    threshold=0.1,
    finding=True,
)


@pytest.fixture
def history(uri: str) -> Iterator[MetricsHistory]:
    history = MetricsHistory(uri)
    yield history
    history.close()


def rows(window: Window, value: float | None = 1.0) -> Metric:
    return Metric(window, MetricName.ROWS, value, rows=7)


def test_a_metric_comes_back_as_it_was_recorded(uri: str, history: MetricsHistory) -> None:
    recorded = [FULL, replace(FULL, column="", value=None), replace(FULL, segment="x" * 5000)]
    history.record(WINDOWS[0], REPORT, recorded)
    again = MetricsHistory(uri)
    assert sorted(again.read(), key=repr) == sorted(recorded, key=repr)
    again.close()


def test_recording_again_changes_nothing_and_stale_rows_vanish(history: MetricsHistory) -> None:
    other = replace(FULL, column="sex")
    for _ in range(2):
        history.record(WINDOWS[0], REPORT, [FULL, other])
    assert history.read() == [FULL, other]
    history.record(WINDOWS[0], "traffic_volume", [rows(WINDOWS[0])])
    history.record(WINDOWS[1], REPORT, [replace(FULL, window=WINDOWS[1])])
    history.record(WINDOWS[0], REPORT, [replace(FULL, value=0.5)])
    assert history.read([MetricName.DRIFT_EFFECT]) == [
        replace(FULL, value=0.5),
        replace(FULL, window=WINDOWS[1]),
    ]
    history.record(WINDOWS[0], REPORT, [])
    assert history.read(until=WINDOWS[0]) == [rows(WINDOWS[0])]


def test_two_reports_cannot_say_the_same_thing(history: MetricsHistory) -> None:
    history.record(WINDOWS[0], REPORT, [FULL])
    with pytest.raises(IntegrityError):
        history.record(WINDOWS[0], "another_report", [FULL])
    assert history.read() == [FULL]


def test_numbers_of_numpy_are_numbers_and_no_number_is_none(history: MetricsHistory) -> None:
    odd = replace(
        FULL,
        value=float("nan"),
        rows=np.int64(5),  # type: ignore[arg-type]
        lower=np.float64(0.5),
        upper=math.inf,
        threshold=np.float32(0.5),  # type: ignore[arg-type]
        finding=np.bool_(True),  # type: ignore[arg-type]
    )
    history.record(WINDOWS[0], REPORT, [odd])
    plain = replace(FULL, value=None, rows=5, lower=0.5, upper=math.inf, threshold=0.5)
    assert history.read() == [plain]


def test_metrics_are_read_by_name_and_time(history: MetricsHistory) -> None:
    for window in WINDOWS[:3]:
        history.record(window, "traffic_volume", [rows(window)])
    history.record(WINDOWS[3], REPORT, [replace(FULL, window=WINDOWS[3])])
    names = [MetricName.ROWS]

    def windows(**bounds: Window | int) -> list[Window]:
        return [metric.window for metric in history.read(names, **bounds)]  # type: ignore[arg-type]

    assert windows() == WINDOWS[:3]
    assert windows(since=WINDOWS[1]) == WINDOWS[1:3]
    assert windows(until=WINDOWS[1]) == WINDOWS[:2]
    assert windows(newest=2) == WINDOWS[1:3]
    assert windows(newest=2, until=WINDOWS[1]) == WINDOWS[:2]
    assert [metric.window for metric in history.read(newest=1)] == [WINDOWS[3]]


def test_what_is_old_is_counted_and_forgotten(history: MetricsHistory) -> None:
    for window in WINDOWS:
        history.record(window, "traffic_volume", [rows(window)])
    assert history.count(WINDOWS[2]) == 2
    assert len(history.read()) == 4
    assert history.delete(WINDOWS[2]) == 2
    assert [metric.window for metric in history.read()] == WINDOWS[2:]
    assert history.count(WINDOWS[2]) == history.delete(WINDOWS[2]) == 0


def test_many_may_record_at_once(uri: str) -> None:
    """Twelve writers, of whom three each report on the same window."""

    def work(number: int) -> None:
        window = WINDOWS[number % 4]
        history = MetricsHistory(uri)
        for value in range(10):
            history.record(window, REPORT, [replace(FULL, window=window, value=float(value))])
        history.close()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    history = MetricsHistory(uri)
    assert history.read() == [replace(FULL, window=window, value=9.0) for window in WINDOWS]
    history.close()
