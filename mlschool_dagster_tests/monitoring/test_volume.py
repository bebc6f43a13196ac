"""Volume: a quiet world is hardly ever accused, a sick one is, and the unknown is left alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.volume import (
    VolumeConfig,
    expectation,
    longest_pause,
    pace,
    usual_silence,
)

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
            expected = expectation(window(hour), before(rows, hour), CONFIG)
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
        expected = expectation(window(hour), before(rows, hour), CONFIG)
        assert expected is not None
        assert expected.basis == "same hour of the week"
        assert expected.lower > 0
        assert rows[hour] * 0.3 < expected.lower
        assert expected.upper < rows[hour] * 3


def test_what_is_compared_grows_with_what_is_known() -> None:
    rows = World(200, 1, 0).rows(5 * WEEK, seed=1)
    known = {
        hour: expectation(window(hour), before(rows, hour), CONFIG)
        for hour in (23, 24, WEEK, 4 * WEEK)
    }
    assert known[23] is None
    found = [(each.basis, each.windows) for each in known.values() if each is not None]
    assert found == [
        ("most recent windows", 24),
        ("same hour of the day", 7),
        ("same hour of the week", 4),
    ]


def test_irregular_traffic_is_not_expected() -> None:
    bursts = [200.0 if hour % 5 == 0 else 0.0 for hour in range(100)]
    assert expectation(window(100), before(bursts, 100), CONFIG) is None


def test_only_windows_before_count() -> None:
    rows = World(200, 1, 0).rows(200, seed=1)
    everything = {window(hour): rows[hour] for hour in range(200)}
    assert expectation(window(60), everything, CONFIG) == expectation(
        window(60), before(rows, 60), CONFIG
    )


@given(st.lists(st.integers(0, 10**7), min_size=24, max_size=60))
def test_bounds_are_bounds_and_hold_all_that_was_seen(counts: list[int]) -> None:
    rows = [float(count) for count in counts]
    expected = expectation(window(len(rows)), before(rows, len(rows)), CONFIG)
    if expected is not None:
        recent = rows[-48:]
        assert 0 <= expected.lower <= min(recent)
        assert max(recent) <= expected.upper < float("inf")


def frames(moments: Sequence[datetime], share: float) -> Iterator[pd.DataFrame]:
    """Captures at `moments`, as a store streams them."""
    for start in range(0, len(moments), 3):
        yield pd.DataFrame(
            {
                "captured_at": pd.to_datetime(list(moments[start : start + 3]), utc=True),
                "sampling_share": share,
            }
        )


@given(st.lists(st.integers(0, 3_600_000_000 - 1), max_size=10), st.sampled_from([1.0, 0.5, 0.125]))
def test_the_pace_is_that_of_all_captures_in_any_order(offsets: list[int], share: float) -> None:
    moments = [window(0).start + timedelta(microseconds=offset) for offset in offsets]
    seen = pace(window(0), frames(moments, share))
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
