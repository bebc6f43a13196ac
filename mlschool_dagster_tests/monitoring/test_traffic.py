"""Following the traffic: each window is compared with its like, sampled or not, and judged once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Capture, Columns, as_columns
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.thresholds import VolumeConfig
from mlschool_dagster.monitoring.traffic import (
    FIELDS,
    REPORT,
    SPAN,
    TrafficCheck,
    VolumeVerdict,
    check_traffic,
    forecast,
    longest_pause,
    traffic_rate,
    usual_silence,
    volume_verdict,
)

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
    history = MetricsHistory(f"sqlite:///{tmp_path}/history.db")
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


def verdicts(seen: TrafficCheck) -> list[VolumeVerdict]:
    return [volume_verdict(result[MetricName.ROWS]) for result in seen.windows.values()]


def test_a_window_is_compared_with_its_own_hour_of_the_week(
    store: CaptureStore, history: MetricsHistory
) -> None:
    for hour in range(2, 26):
        was(history, back(hour + SPAN), 1000)
    for week in range(1, 5):
        was(history, back(1 + week * 24 * 7), 100 + week)
    comes(store, back(1), 102)
    seen = check_traffic(store, history, {}, NOW, CONFIG)
    newest = seen.windows[back(1)][MetricName.ROWS]
    assert volume_verdict(newest) is VolumeVerdict.USUAL
    assert newest.upper is not None
    assert newest.upper < 200


def test_sampling_makes_no_less_traffic(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in range(2, 40):
        comes(store, back(hour), 40)
    comes(store, back(1), 5, share=0.125)
    seen = check_traffic(store, history, {}, NOW, CONFIG)
    newest = seen.windows[back(1)]
    assert newest[MetricName.ROW_RATE].value == 40.0
    assert (newest[MetricName.ROWS].value, newest[MetricName.ROWS].upper) == (
        5.0,
        (newest[MetricName.ROW_RATE].upper or 0.0) / 8,
    )
    assert not newest[MetricName.ROWS].finding


def test_a_flood_and_a_trickle_are_detected(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in range(3, 40):
        comes(store, back(hour), 40)
    comes(store, back(2), 400)
    comes(store, back(1), 4)
    seen = check_traffic(store, history, {}, NOW, CONFIG)
    assert verdicts(seen)[-2:] == [VolumeVerdict.MORE, VolumeVerdict.LESS]
    assert [metric.window for metric in seen.findings] == [back(2), back(1)]
    again = check_traffic(store, history, seen.tokens, NOW, CONFIG)
    assert again.changed_windows == ()
    assert [metric.window for metric in again.findings] == [back(1)]


def test_a_clock_that_jumps_leaves_no_window_unjudged(
    store: CaptureStore, history: MetricsHistory
) -> None:
    for hour in range(40, 10, -1):
        comes(store, back(hour), 40)
    before = check_traffic(store, history, {}, back(10).start, CONFIG)
    assert verdicts(before) == [VolumeVerdict.UNKNOWN] * 24 + [VolumeVerdict.USUAL] * 6
    seen = check_traffic(store, history, before.tokens, NOW, CONFIG)
    assert verdicts(seen)[-10:] == [VolumeVerdict.OUTAGE] * 10
    assert len(seen.changed_windows) == 10
    assert not seen.is_fresh
    assert seen.silence is not None
    assert timedelta(hours=10) < seen.silence < timedelta(hours=10.5)


def test_an_outage_teaches_nothing(store: CaptureStore, history: MetricsHistory) -> None:
    for hour in (*range(47, 10, -1), 3):
        comes(store, back(hour), 40)
    assert verdicts(check_traffic(store, history, {}, NOW, CONFIG))[-10:] == [
        *[VolumeVerdict.OUTAGE] * 7,
        VolumeVerdict.USUAL,
        *[VolumeVerdict.OUTAGE] * 2,
    ]


def test_what_is_refused_is_reported_of_windows_without_any_capture(
    store: CaptureStore, history: MetricsHistory
) -> None:
    store.count_refusals(back(2), {"no_such_column": 2})
    store.count_refusals(back(1), {"no_such_column": 2})
    comes(store, back(1), 1)
    seen = check_traffic(store, history, {}, NOW, CONFIG)
    assert {
        window: volume_verdict(result[MetricName.ROWS]) for window, result in seen.windows.items()
    } == {
        back(2): VolumeVerdict.ALL_REFUSED,
        back(1): VolumeVerdict.UNKNOWN,
    }


def test_captures_of_a_wrong_clock_are_no_sign_of_life_and_no_beginning(
    store: CaptureStore, history: MetricsHistory
) -> None:
    ahead, unset = Window.of(NOW + timedelta(hours=3)), Window.of(datetime(1970, 1, 1, tzinfo=UTC))
    for window in (ahead, unset, back(5)):
        comes(store, window, 1)
    seen = check_traffic(store, history, {}, NOW, CONFIG)
    assert min(seen.windows) == back(5)
    assert seen.silence == NOW - back(5).start - LENGTH / 2


CONFIG = VolumeConfig()
WEEK = 24 * 7
BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday."""


def window(hour: int) -> Window:
    return Window(BEGIN + hour * LENGTH)


@dataclass(frozen=True)
class World:
    """Traffic of `level` rows an hour, that varies over day and week by `season`."""

    level: float
    dispersion: float
    season: float

    def rows(self, hours: int, seed: int) -> list[float]:
        hour = np.arange(hours)
        mean = self.level * (1 + self.season * np.sin(2 * np.pi * (hour % 24) / 24))
        mean = mean * np.where((hour // 24) % 7 >= 5, 1 - 0.6 * self.season, 1)
        random = np.random.default_rng(seed)
        if self.dispersion == 1:
            return [float(rows) for rows in random.poisson(mean)]
        size = mean / (self.dispersion - 1)
        return [float(rows) for rows in random.negative_binomial(size, 1 / self.dispersion)]


WORLDS = [
    World(20, 1, 0),
    World(20, 5, 0.8),
    World(200, 1, 0.8),
    World(200, 50, 0),
    World(5000, 5, 0.8),
    World(5000, 50, 0),
]


def before(rows: Sequence[float], hour: int) -> Mapping[Window, float]:
    return {window(other): rows[other] for other in range(hour)}


def test_a_quiet_world_is_hardly_ever_accused() -> None:
    judged = accused = 0
    for seed, world in enumerate(WORLDS):
        rows = world.rows(6 * WEEK, seed)
        for hour in [*range(30, WEEK, 7), *range(WEEK, 6 * WEEK, 17)]:
            expected = forecast(window(hour), before(rows, hour), CONFIG)
            if expected is not None:
                judged += 1
                accused += not expected.lower <= rows[hour] <= expected.upper
    assert judged > 300
    assert accused / judged < 0.01


@pytest.mark.parametrize("world", [World(200, 5, 0), World(5000, 5, 0.8)])
@pytest.mark.parametrize("day", [4, 5])
def test_after_a_month_an_outage_and_a_third_or_thrice_the_traffic_are_seen_at_any_hour(
    world: World, day: int
) -> None:
    rows = world.rows(5 * WEEK, seed=3)
    for hour in range(4 * WEEK + day * 24, 4 * WEEK + (day + 1) * 24, 3):
        expected = forecast(window(hour), before(rows, hour), CONFIG)
        assert expected is not None
        assert expected.basis == "same hour of the week"
        assert expected.lower > 0
        assert rows[hour] * 0.3 < expected.lower
        assert expected.upper < rows[hour] * 3


def test_what_is_compared_grows_with_what_is_known() -> None:
    rows = World(200, 1, 0).rows(5 * WEEK, seed=1)
    known = {
        hour: forecast(window(hour), before(rows, hour), CONFIG)
        for hour in (23, 24, WEEK, 4 * WEEK)
    }
    assert known[23] is None
    result = [(each.basis, each.windows) for each in known.values() if each is not None]
    assert result == [
        ("most recent windows", 24),
        ("same hour of the day", 7),
        ("same hour of the week", 4),
    ]


def test_irregular_traffic_is_not_expected() -> None:
    bursts = [200.0 if hour % 5 == 0 else 0.0 for hour in range(100)]
    assert forecast(window(100), before(bursts, 100), CONFIG) is None


def test_only_windows_before_count() -> None:
    rows = World(200, 1, 0).rows(200, seed=1)
    everything = {window(hour): rows[hour] for hour in range(200)}
    assert forecast(window(60), everything, CONFIG) == forecast(
        window(60), before(rows, 60), CONFIG
    )


@given(st.lists(st.integers(0, 10**7), min_size=24, max_size=60))
def test_bounds_are_bounds_and_hold_all_that_was_seen(counts: list[int]) -> None:
    rows = [float(count) for count in counts]
    expected = forecast(window(len(rows)), before(rows, len(rows)), CONFIG)
    if expected is not None:
        recent = rows[-48:]
        assert 0 <= expected.lower <= min(recent)
        assert max(recent) <= expected.upper < float("inf")


def columns(moments: Sequence[datetime], share: float) -> Iterator[Columns]:
    """Captures at `moments`, as a store streams them."""
    rows = [
        ((moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), share)
        for moment in moments
    ]
    for start in range(0, len(rows), 3):
        yield as_columns(rows[start : start + 3], FIELDS)


@given(st.lists(st.integers(0, 3_600_000_000 - 1), max_size=10), st.sampled_from([1.0, 0.5, 0.125]))
def test_the_rate_is_that_of_all_captures_in_any_order(offsets: list[int], share: float) -> None:
    moments = [window(0).start + timedelta(microseconds=offset) for offset in offsets]
    seen = traffic_rate(window(0), columns(moments, share))
    edges = [window(0).start, *sorted(moments), window(0).end]
    assert seen.rows == len(moments)
    assert seen.rate == len(moments) / share
    assert seen.silence == max(b - a for a, b in pairwise(edges))


def test_the_usual_silence_spans_windows_without_any_capture() -> None:
    silences = {window(hour): timedelta(minutes=10) for hour in range(40)}
    now = window(40).start + LENGTH / 2
    assert usual_silence(silences, now, CONFIG) == timedelta(minutes=10)
    silences |= {window(hour): LENGTH for hour in (20, 21, 22)}
    assert usual_silence(silences, now, CONFIG) == 3 * LENGTH
    assert longest_pause(3 * LENGTH, CONFIG) == 6 * LENGTH
    assert longest_pause(timedelta(), CONFIG) == CONFIG.shortest_pause


def test_of_few_windows_no_silence_is_usual() -> None:
    silences = {window(hour): timedelta(minutes=10) for hour in range(23)}
    assert usual_silence(silences, window(24).start, CONFIG) is None
