"""Evidence over windows: rarely any in quiet ones, soon enough where there is drift."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.drift import drift_from
from mlschool_dagster.monitoring.e_values import HORIZON, CompositeNull, evidence
from mlschool_dagster.monitoring.metric_records import drift_metrics, earlier_e_values
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
from mlschool_dagster.monitoring.thresholds import DriftConfig
from mlschool_dagster_tests.monitoring.samples import (
    SPEC,
    START,
    population,
    resampled,
    shifted,
    window,
)

POPULATION = population()
CONFIG = DriftConfig()
BASELINE = ReferenceProfile(POPULATION, SPEC)
NULL = CompositeNull(BASELINE, CONFIG)


def e_values(rows: pd.DataFrame) -> dict[str, float]:
    return NULL.e_values(BASELINE.summary([rows]))


def windows_until_confirmed(rows: list[pd.DataFrame]) -> int | None:
    observed = [e_values(frame) for frame in rows]
    for count in range(1, len(observed) + 1):
        if evidence(observed[:count], CONFIG.alpha).confirmed:
            return count
    return None


def test_the_default_simulated_drift_is_confirmed_at_once_in_its_column() -> None:
    quiet = [e_values(window(200, seed)) for seed in range(5)]
    drifted = e_values(shifted(window(200, 9), "body_mass_g"))
    assert not evidence(quiet, CONFIG.alpha).confirmed
    result = evidence([*quiet, drifted], CONFIG.alpha)
    assert result.confirmed
    assert result.confirmed_columns == ["body_mass_g"]
    assert "body_mass_g" in result.summary


def test_a_small_shift_is_confirmed_over_a_few_windows() -> None:
    rows = [window(200, seed) for seed in range(12)]
    step = 0.25 * POPULATION["body_mass_g"].std()
    moved = [frame.assign(body_mass_g=frame["body_mass_g"] + step) for frame in rows]
    result = windows_until_confirmed(moved)
    assert result is not None and result <= 8
    assert windows_until_confirmed(rows) is None


def test_an_alarm_ends_soon_after_the_drift() -> None:
    observed = [e_values(shifted(window(200, seed), "body_mass_g")) for seed in range(30)]
    assert evidence(observed, CONFIG.alpha).confirmed
    observed += [e_values(window(200, 100 + seed)) for seed in range(10)]
    assert not evidence(observed, CONFIG.alpha).confirmed


def test_without_rows_there_is_no_evidence_either_way() -> None:
    assert set(e_values(window(0)).values()) == {1.0}


@given(st.integers(1, 3), st.integers(0, 2))
def test_what_is_too_small_to_matter_is_no_evidence_however_many_rows(by: int, seed: int) -> None:
    """A hundredth of a standard deviation, and rows without end."""
    rows = resampled(POPULATION, 20_000, seed)
    rows["body_mass_g"] += 0.01 * by * POPULATION["body_mass_g"].std()
    assert max(e_values(rows).values()) < 1


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", ""]), st.floats(0, 1e12), min_size=1),
        min_size=1,
        max_size=30,
    )
)
def test_evidence_adds_up_and_is_bounded(observed: list[dict[str, float]]) -> None:
    result = evidence(observed, CONFIG.alpha)
    assert len(result.totals) == len(observed)
    assert result.totals[-1] == pytest.approx(sum(result.parts.values()))
    assert all(0 <= part <= 10 * result.threshold for part in result.parts.values())
    assert result.confirmed == (result.totals[-1] >= result.threshold)


def test_evidence_is_that_of_a_mixture_over_the_beginning_of_the_change() -> None:
    observed = [2.0, 0.5, 3.0]
    by_hand = sum(np.prod(observed[start:]) for start in range(3)) / HORIZON
    assert evidence([{"a": e} for e in observed], 0.05).totals[-1] == pytest.approx(by_hand)


def test_a_window_again_leaves_the_same_evidence(tmp_path: object) -> None:
    history = MetricsHistory(f"sqlite:///{tmp_path}/history.db")
    hours = [Window(START + LENGTH * hour) for hour in range(3)]

    def monitored(hour: int, version: str = "1") -> list[Metric]:
        summary = BASELINE.summary([shifted(window(60, hour), "body_mass_g", hour)])
        observed = NULL.e_values(summary)
        earlier = earlier_e_values(history, hours[hour], version)
        report = drift_from(BASELINE, summary, CONFIG)
        result = evidence([*earlier.values(), observed], CONFIG.alpha)
        history.record(
            hours[hour],
            "drift_report",
            drift_metrics(hours[hour], version, report, observed, result),
        )
        return history.read([MetricName.DRIFT_EVIDENCE], since=hours[hour], until=hours[hour])

    first = [monitored(hour) for hour in range(3)]
    again = [monitored(hour) for hour in (2, 0, 1)]
    assert again == [first[2], first[0], first[1]]
    assert first[2][0].finding
    # Another version has another reference: evidence against the one says nothing of the other.
    assert list(earlier_e_values(history, hours[2], "2")) == []
    history.close()


@pytest.mark.slow
def test_alarms_are_rare_over_a_thousand_quiet_windows_that_share_a_small_reference() -> None:
    """At most 5 % of histories in truth; of 12 at most 2 with 97.5 % certainty."""
    alarms = 0
    for seed in range(12):
        baseline = ReferenceProfile(resampled(POPULATION, 344, 10_000 + seed), SPEC)
        null = CompositeNull(baseline, CONFIG)
        rows = resampled(POPULATION, 60_000, seed)
        observed = [
            null.e_values(baseline.summary([rows.iloc[start : start + 200]]))
            for start in range(0, len(rows), 200)
        ]
        totals = evidence(observed, CONFIG.alpha).totals
        alarms += max(totals) >= 2 / CONFIG.alpha
    assert alarms <= 2
