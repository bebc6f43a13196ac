"""Drift is flagged where it is, not flagged where it is not, and not judged on too little."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.monitoring.drift import DriftReport, DriftVerdict, drift
from mlschool_dagster.monitoring.statistics import benjamini_hochberg, homogeneity, wilson_interval
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


@pytest.mark.parametrize("seed", range(20))
def test_the_default_simulated_drift_is_found_in_the_right_column(seed: int) -> None:
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
def test_each_kind_of_change_is_found_in_its_column(change: dict[str, Any], column: str) -> None:
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


@settings(max_examples=30)
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


@given(st.lists(st.floats(0, 1), max_size=20))
def test_adjusting_never_lowers_a_p_value_nor_changes_the_order(p_values: list[float]) -> None:
    given_values = np.array(p_values)
    adjusted = benjamini_hochberg(given_values)
    assert (adjusted >= given_values - 1e-12).all()
    order = np.argsort(given_values, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()


def test_adjusted_p_values_of_the_textbook() -> None:
    adjusted = benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.02, 0.04, 0.04, 0.02])


def test_small_counts_are_tested_by_random_tables() -> None:
    fisher = homogeneity(np.array([3, 1]), np.array([1, 3]))
    assert fisher.p_value == pytest.approx(34 / 70, abs=0.02)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_holds_the_share(successes: int, more: int) -> None:
    trials = successes + more
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low <= successes / trials <= high


@pytest.mark.slow
@pytest.mark.parametrize("rows", [50, 200, 1000])
@pytest.mark.parametrize("fixed", [True, False])
def test_false_alarms_stay_within_their_rate(rows: int, fixed: bool) -> None:
    """At most 5 % in truth; of 400 windows at most 27 with 97.5 % certainty."""
    alarms = sum(
        drift(
            resampled(REFERENCE, rows, seed),
            REFERENCE if fixed else resampled(REFERENCE, len(REFERENCE), 100_000 + seed),
            SPEC,
        ).verdict
        is DriftVerdict.DRIFTED
        for seed in range(400)
    )
    assert alarms <= 27
