"""Following the traffic: each window is compared with its like, sampled or not, and judged once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.history import open_history
from mlschool_dagster.monitoring.metrics import Metric, MetricName, MetricsHistory
from mlschool_dagster.monitoring.traffic import REPORT, SPAN, Look, Volume, look, volume
from mlschool_dagster.monitoring.volume import VolumeConfig

NOW = datetime(2026, 11, 20, 12, 20, tzinfo=UTC)
CONFIG = VolumeConfig()


def back(hours: float) -> Window:
    """The window that began so many hours before the present one."""
    return Window(Window.of(NOW).start - hours * LENGTH)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaptureStore]:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    yield store
    store.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[MetricsHistory]:
    history = open_history(f"sqlite:///{tmp_path}/history.db")
    yield history
    history.close()


def comes(store: CaptureStore, window: Window, rows: int, share: float = 1.0) -> None:
    """`rows` captures, evenly over `window`."""
    captures = [
        Capture(
            event_id=f"{window.key}-{number}",
            captured_at=window.start + LENGTH * (number + 0.5) / rows,
            endpoint="model",
            model_version="1",
            inputs={},
            prediction="yes",
            confidence=0.9,
            probabilities={},
            sampling_share=share,
        )
        for number in range(rows)
    ]
    store.append(captures)


def was(history: MetricsHistory, window: Window, rows: int) -> None:
    """Let `window` have had so many rows."""
    numbers = {MetricName.ROWS: rows, MetricName.ROW_RATE: rows, MetricName.SILENCE: 0.1}
    history.record(
        window, REPORT, [Metric(window, name, float(n), rows) for name, n in numbers.items()]
    )


def verdicts(seen: Look) -> list[Volume]:
    return [volume(found[MetricName.ROWS]) for found in seen.windows.values()]


def test_a_window_is_compared_with_its_own_hour_of_the_week(
    store: CaptureStore, history: MetricsHistory
) -> None:
    for hour in range(2, 26):
        was(history, back(hour + SPAN), 1000)
    for week in range(1, 5):
        was(history, back(1 + week * 24 * 7), 100 + week)
    comes(store, back(1), 102)
    seen = look(store, history, {}, NOW, CONFIG)
    newest = seen.windows[back(1)][MetricName.ROWS]
    assert volume(newest) is Volume.USUAL
    assert newest.upper is not None
    assert newest.upper < 200


def test_sampling_makes_no_less_traffic(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in range(2, 40):
        comes(store, back(hour), 40)
    comes(store, back(1), 5, share=0.125)
    seen = look(store, history, {}, NOW, CONFIG)
    newest = seen.windows[back(1)]
    assert newest[MetricName.ROW_RATE].value == 40.0
    assert (newest[MetricName.ROWS].value, newest[MetricName.ROWS].upper) == (
        5.0,
        (newest[MetricName.ROW_RATE].upper or 0.0) / 8,
    )
    assert not newest[MetricName.ROWS].finding


def test_a_flood_and_a_trickle_are_found(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in range(3, 40):
        comes(store, back(hour), 40)
    comes(store, back(2), 400)
    comes(store, back(1), 4)
    seen = look(store, history, {}, NOW, CONFIG)
    assert verdicts(seen)[-2:] == [Volume.MORE, Volume.LESS]
    assert [metric.window for metric in seen.findings] == [back(2), back(1)]
    again = look(store, history, seen.tokens, NOW, CONFIG)
    assert again.news == ()
    assert [metric.window for metric in again.findings] == [back(1)]


def test_a_clock_that_jumps_leaves_no_window_unjudged(
    store: CaptureStore, history: MetricsHistory
) -> None:
    for hour in range(40, 10, -1):
        comes(store, back(hour), 40)
    before = look(store, history, {}, back(10).start, CONFIG)
    assert verdicts(before) == [Volume.UNKNOWN] * 24 + [Volume.USUAL] * 6
    seen = look(store, history, before.tokens, NOW, CONFIG)
    assert verdicts(seen)[-10:] == [Volume.OUTAGE] * 10
    assert len(seen.news) == 10
    assert not seen.is_fresh
    assert seen.silence is not None
    assert timedelta(hours=10) < seen.silence < timedelta(hours=10.5)


def test_an_outage_teaches_nothing(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in (*range(47, 10, -1), 3):
        comes(store, back(hour), 40)
    assert verdicts(look(store, history, {}, NOW, CONFIG))[-10:] == [
        *[Volume.OUTAGE] * 7,
        Volume.USUAL,
        *[Volume.OUTAGE] * 2,
    ]


def test_what_is_refused_is_told_of_windows_without_any_capture(
    store: CaptureStore, history: MetricsHistory
) -> None:
    store.count_refusals(back(2), {"no_such_column": 2})
    store.count_refusals(back(1), {"no_such_column": 2})
    comes(store, back(1), 1)
    seen = look(store, history, {}, NOW, CONFIG)
    assert {window: volume(found[MetricName.ROWS]) for window, found in seen.windows.items()} == {
        back(2): Volume.ALL_REFUSED,
        back(1): Volume.UNKNOWN,
    }


def test_captures_of_a_wrong_clock_are_no_sign_of_life_and_no_beginning(
    store: CaptureStore, history: MetricsHistory
) -> None:
    ahead, unset = Window.of(NOW + timedelta(hours=3)), Window.of(datetime(1970, 1, 1, tzinfo=UTC))
    for window in (ahead, unset, back(5)):
        comes(store, window, 1)
    seen = look(store, history, {}, NOW, CONFIG)
    assert min(seen.windows) == back(5)
    assert seen.silence == NOW - back(5).start - LENGTH / 2
