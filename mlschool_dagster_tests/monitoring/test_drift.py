"""Drift is flagged where it is, not flagged where it is not, and not judged on too little."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.drift import (
    DriftReport,
    DriftVerdict,
    drift,
    drift_by_segment,
    drift_from,
)
from mlschool_dagster.monitoring.e_values import CompositeNull
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
from mlschool_dagster.monitoring.thresholds import DriftConfig
from mlschool_dagster_tests.monitoring.samples import (
    SPEC,
    population,
    resampled,
    shifted,
    window,
)

REFERENCE = population()


def judged(current: pd.DataFrame) -> DriftReport:
    return drift(current, REFERENCE, SPEC)


def test_a_window_like_the_reference_shows_no_drift() -> None:
    assert judged(window(200)).verdict is DriftVerdict.STABLE


@pytest.mark.parametrize("seed", range(10))
def test_the_default_simulated_drift_is_detected_in_the_right_column(seed: int) -> None:
    report = judged(shifted(window(200, seed), "body_mass_g", seed))
    assert "body_mass_g" in report.drifted_columns
    assert len(report.drifted_columns) <= 2
    assert "body_mass_g" in report.summary


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"island": "Anvers"}, "island"),
        ({"sex": None}, "sex"),
        ({"culmen_length_mm": np.nan}, "culmen_length_mm"),
        ({"prediction": "Gentoo"}, "prediction"),
        ({"confidence": 0.6}, "confidence"),
    ],
)
def test_each_kind_of_change_is_detected_in_its_column(change: dict[str, Any], column: str) -> None:
    assert judged(window(200).assign(**change)).drifted_columns == [column]


def test_new_categories_are_counted() -> None:
    report = judged(window(200).assign(island="Anvers"))
    (test,) = (t for t in report.tests if t.column == "island" and t.aspect == "distribution")
    assert "200 values outside the known categories" in test.why
    assert test.effect == pytest.approx(1)


@pytest.mark.parametrize("rows", [0, 1, 29])
def test_too_few_rows_are_never_called_fine(rows: int) -> None:
    report = judged(shifted(window(rows), "body_mass_g"))
    assert report.verdict is DriftVerdict.NOT_ENOUGH_DATA
    assert {test.verdict for test in report.tests} == {DriftVerdict.NOT_ENOUGH_DATA}


def test_a_column_without_values_is_missing_not_fine() -> None:
    report = judged(window(200).assign(sex=None))
    verdicts = {t.aspect: t.verdict for t in report.tests if t.column == "sex"}
    assert verdicts == {
        "distribution": DriftVerdict.NOT_ENOUGH_DATA,
        "missing share": DriftVerdict.DRIFTED,
    }


def test_a_significant_but_tiny_difference_is_no_drift() -> None:
    current = resampled(REFERENCE, 20_000, 0)
    current["body_mass_g"] += 0.05 * REFERENCE["body_mass_g"].std()
    report = drift(current, resampled(REFERENCE, 20_000, 1), SPEC)
    (test,) = (t for t in report.tests if (t.column, t.aspect) == ("body_mass_g", "distribution"))
    assert test.adjusted_p_value is not None and test.adjusted_p_value < 0.05
    assert test.verdict is DriftVerdict.STABLE


def test_every_verdict_says_what_it_rests_on() -> None:
    document = json.loads(json.dumps(judged(window(200)).to_dict()))
    for test in document["tests"]:
        assert test["test"] and test["why"]
        assert test["n_current"] > 0 and test["n_reference"] > 0
        assert 0 <= test["p_value"] <= test["adjusted_p_value"] <= 1
        assert test["effect"] >= 0


def test_an_old_reference_is_named() -> None:
    with pytest.raises(UserError, match="confidence"):
        drift(window(50), REFERENCE.drop(columns="confidence"), SPEC)


@pytest.mark.parametrize("setting", [{"alpha": 0}, {"minimum_effect": 1}, {"minimum_rows": 1}])
def test_senseless_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        DriftConfig(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [np.nan, 4_000.1, [3_000.0] + [np.nan] * 343])
def test_odd_references_are_compared_as_far_as_they_go(values: Any) -> None:
    baseline = ReferenceProfile(REFERENCE.assign(body_mass_g=values), SPEC)
    summary = baseline.summary([window(200)])
    report = drift_from(baseline, summary, DriftConfig())
    json.dumps(report.to_dict(), allow_nan=False)
    e_values = CompositeNull(baseline, DriftConfig()).e_values(summary)
    assert all(np.isfinite(e_value) for e_value in e_values.values())


@settings(max_examples=15)
@given(
    rows=st.integers(0, 60),
    holes=st.dictionaries(st.sampled_from(SPEC.input_names), st.floats(0, 1), max_size=4),
    seed=st.integers(0, 1000),
)
def test_any_window_gets_a_verdict(rows: int, holes: dict[str, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    current = window(rows, seed)
    for name, share in holes.items():
        current[name] = current[name].mask(rng.random(rows) < share)
    report = judged(current)
    json.dumps(report.to_dict(), allow_nan=False)
    assert len(report.tests) == 2 * len(SPEC.columns) + len(SPEC.numeric) + 3


def test_a_shift_far_below_a_column_s_spread_is_named_given_the_other_columns() -> None:
    for seed in range(6):
        current = resampled(REFERENCE, 1_000, seed)
        current["culmen_depth_mm"] += 0.25 * REFERENCE["culmen_depth_mm"].std()
        reference = resampled(REFERENCE, len(REFERENCE), 1_000 + seed)
        result = drift(current, reference, SPEC)
        assert "culmen_depth_mm" in result.drifted_columns
        assert len(result.drifted_columns) <= 2


def test_what_no_column_shows_by_itself_is_detected_in_all_together() -> None:
    current = window(200)
    shuffled = current["body_mass_g"].sample(frac=1, random_state=3).to_numpy()
    report = judged(current.assign(body_mass_g=shuffled))
    assert report.verdict is DriftVerdict.DRIFTED
    assert report.drifted_columns == []
    assert "all columns together" in report.summary


def test_a_wider_spread_is_detected_where_the_mean_stays() -> None:
    current = window(200)
    mean = REFERENCE["body_mass_g"].mean()
    report = judged(current.assign(body_mass_g=mean + 1.5 * (current["body_mass_g"] - mean)))
    assert "body_mass_g" in report.drifted_columns


def test_a_window_in_chunks_is_the_same_window() -> None:
    current = shifted(window(500), "body_mass_g")
    baseline = ReferenceProfile(REFERENCE, SPEC)
    chunks = [current.iloc[start : start + 70] for start in range(0, 500, 70)]
    report = drift_from(baseline, baseline.summary(chunks), DriftConfig())
    for pieces, whole in zip(report.tests, judged(current).tests, strict=True):
        assert (pieces.column, pieces.verdict) == (whole.column, whole.verdict)
        assert pieces.p_value == pytest.approx(whole.p_value)
        assert pieces.effect == pytest.approx(whole.effect)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [50, 1000])
@pytest.mark.parametrize("fixed", [True, False])
def test_false_alarms_stay_within_their_rate(rows: int, fixed: bool) -> None:
    """At most 5 % in truth; of 200 windows at most 16 with 97.5 % certainty."""
    alarms = sum(
        drift(
            resampled(REFERENCE, rows, seed),
            REFERENCE if fixed else resampled(REFERENCE, len(REFERENCE), 100_000 + seed),
            SPEC,
        ).verdict
        is DriftVerdict.DRIFTED
        for seed in range(200)
    )
    assert alarms <= 16


REFERENCE = population()


def test_the_segment_that_changed_is_named_with_its_column() -> None:
    current = window(600)
    there = current["island"] == "Dream"
    changed = shifted(current, "body_mass_g")
    current["body_mass_g"] = current["body_mass_g"].mask(there, changed["body_mass_g"])
    result = {one.segment: one for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert result["island=Dream"].verdict == DriftVerdict.DRIFTED
    assert "body_mass_g" in result["island=Dream"].columns
    assert result["island=Biscoe"].verdict != DriftVerdict.DRIFTED


def test_small_segments_are_left_out() -> None:
    current = window(200).assign(island="Dream")
    current.loc[:9, "island"] = "Biscoe"
    result = {one.segment: one.rows for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert result["island=Dream"] == 190
    assert not {"island=Biscoe", "island=Torgersen", "role=primary"} & result.keys()


def test_roles_are_compared_with_the_whole_reference() -> None:
    current = window(200).assign(role=["primary"] * 120 + ["canary"] * 80)
    result = {one.segment: one for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert (result["role=canary"].rows, result["role=canary"].reference_rows) == (80, 344)


@pytest.mark.slow
def test_without_drift_hardly_any_window_has_a_segment_flagged() -> None:
    flagged = sum(
        any(
            one.verdict == DriftVerdict.DRIFTED
            for one in drift_by_segment(window(200, seed), REFERENCE, SPEC)
        )
        for seed in range(20)
    )
    assert flagged <= 4
