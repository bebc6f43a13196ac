"""The volume of the traffic: outages and refusals are found, late captures heal, once is enough."""

import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster_tests.platform import (
    SPEC,
    Platform,
    checks,
    materialized,
    metadata,
    undecided,
)

ROWS = 12


def back(hours: int) -> Window:
    """The window that began so many hours before the present one."""
    return Window(Window.of(utc_now()).start - hours * LENGTH)


def captures(window: Window, rows: int = ROWS, share: float = 1.0) -> list[Capture]:
    """`rows` captures, evenly over `window`."""
    return [
        Capture(
            event_id=f"{window.key}-{number}",
            captured_at=window.start + LENGTH * (number + 0.5) / rows,
            endpoint=SPEC.name,
            model_version="1",
            inputs={},
            prediction=SPEC.target.classes[0],
            confidence=0.9,
            probabilities={},
            sampling_share=share,
        )
        for number in range(rows)
    ]


class Traffic:
    """A platform with traffic, and looks at it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def comes(self, hours: Sequence[int], rows: int = ROWS) -> None:
        with self.platform.store() as store:
            for hour in hours:
                store.append(captures(back(hour), rows))

    def look(self, **config: float) -> dg.ExecuteInProcessResult:
        result = self.platform.run("volume_job", {"traffic_volume": config})
        assert result.success
        assert materialized(result) == {"traffic_volume"}
        return result

    def recorded(self) -> dict[str, Metric]:
        """The rows of each recorded window, by its key."""
        history = MetricsHistory(self.platform.settings.history)
        found = {metric.window.key: metric for metric in history.read([MetricName.ROWS])}
        history.close()
        return found

    def outcomes(self, check: str) -> dict[str, float | None]:
        """The recorded outcomes of a check, by the key of its window."""
        history = MetricsHistory(self.platform.settings.history)
        recorded = history.read([MetricName.CHECK])
        history.close()
        return {metric.window.key: metric.value for metric in recorded if metric.column == check}


@pytest.fixture
def traffic(platform: Platform, clock_offset: Path) -> Traffic:
    # The hour has just begun, so that it does not end within a test.
    clock_offset.write_text(str(60 - time.time() % 3600))
    return Traffic(platform)


def test_without_traffic_nothing_is_claimed(traffic: Traffic) -> None:
    result = traffic.look()
    found = checks(result)
    assert all(check.passed for check in found.values())
    assert undecided(result) == {"traffic_is_fresh"}
    assert found["traffic_is_fresh"].description == "There has been no traffic yet."
    assert traffic.recorded() == {}


def test_a_burst_and_silence_are_not_enough_history_to_find_anything(traffic: Traffic) -> None:
    traffic.comes([20])
    result = traffic.look()
    assert all(check.passed for check in checks(result).values())
    assert [metric.rows for metric in traffic.recorded().values()] == [ROWS] + [0] * 19


def test_an_outage_is_found_once_it_lasts_and_over_once_traffic_comes(traffic: Traffic) -> None:
    traffic.comes(range(45, 2, -1))
    found = checks(traffic.look())
    assert not found["volume_as_expected"].passed
    assert f"0 rows in {back(2).key}, outage: {ROWS} to" not in str(
        found["volume_as_expected"].description
    )
    assert f"0 rows in {back(1).key}, outage" in str(found["volume_as_expected"].description)
    assert not found["traffic_is_fresh"].passed
    assert found["traffic_is_fresh"].severity is dg.AssetCheckSeverity.ERROR
    outages = {key for key, metric in traffic.recorded().items() if metric.finding}
    assert outages == {back(2).key, back(1).key}
    volumes = traffic.outcomes("volume_as_expected")
    assert {key for key, value in volumes.items() if value == 0} == outages
    assert [volumes[back(hour).key] for hour in (45, 3)] == [None, 1]
    assert traffic.outcomes("traffic_is_fresh") == {back(1).key: 0}
    # What was captured meanwhile lands late: the endpoint kept it in its write-ahead log.
    traffic.comes([2, 1, 0])
    result = traffic.look()
    assert all(check.passed for check in checks(result).values())
    assert not any(metric.finding for metric in traffic.recorded().values())
    assert traffic.outcomes("traffic_is_fresh") == {back(1).key: 1}
    assert 0 not in traffic.outcomes("volume_as_expected").values()
    assert metadata(result, "traffic_volume")["rows_this_hour"] == ROWS


def test_looking_again_changes_nothing(traffic: Traffic) -> None:
    traffic.comes(range(30, 0, -1))
    first = traffic.look()
    before = traffic.recorded()
    assert (
        metadata(traffic.look(), "traffic_volume")["windows"]
        == (metadata(first, "traffic_volume")["windows"])
    )
    assert traffic.recorded() == before


def test_a_window_in_which_all_was_refused_is_found_without_any_history(traffic: Traffic) -> None:
    with traffic.platform.store() as store:
        store.count_refusals(back(1), {"missing column": 3})
    found = checks(traffic.look())["volume_as_expected"]
    assert found.description == (
        f"Every request in {back(1).key} was refused; see the endpoint's log."
    )
    assert not found.passed
