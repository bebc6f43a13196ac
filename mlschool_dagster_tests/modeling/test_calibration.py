"""A calibration says how often a confidence is right, and how surely it can know that."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.calibration import (
    BIN_LOGITS,
    BINS,
    CALIBRATION_FILE,
    IDENTITY_CALIBRATION,
    confidence_bins,
    fit_calibration,
    load_calibration,
)
from mlschool_dagster.modeling.training import TrainingResult
from mlschool_dagster.modeling.version_folder import write_version


def logistic(odds: float | np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(odds))))


def world(
    rows: int, intercept: float, slope: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Confidences between 0.4 and 0.99, and predictions right as often as the curve says."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.4, 0.99, rows)
    chance = logistic(intercept + slope * np.log(confidence / (1 - confidence)))
    return confidence, rng.random(rows) < chance


@given(st.floats(0, 1))
def test_every_confidence_has_a_bin_near_it(confidence: float) -> None:
    (position,) = confidence_bins(np.array([confidence]))
    assert 0 <= position < BINS
    assert abs(logistic(BIN_LOGITS[position]) - confidence) < 0.015


@pytest.mark.parametrize(("intercept", "slope"), [(0.0, 1.0), (-0.7, 0.6), (0.5, 1.5)])
def test_the_curve_of_a_large_world_is_recovered(intercept: float, slope: float) -> None:
    result = fit_calibration(*world(50_000, intercept, slope))
    within = (BIN_LOGITS > -0.4) & (BIN_LOGITS < 4.5)
    expected = logistic(intercept + slope * BIN_LOGITS[within])
    np.testing.assert_allclose(result.chances().mean(axis=0)[within], expected, atol=0.02)
    assert result.chances().std(axis=0)[within].max() < 0.01


def test_few_rows_leave_more_in_doubt_than_many() -> None:
    doubts = [
        fit_calibration(*world(rows, -0.5, 0.8)).chances().std(axis=0).mean()
        for rows in (30, 300, 3000)
    ]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[-1] < doubts[0] / 3


def test_a_model_without_an_error_is_not_called_infallible() -> None:
    result = fit_calibration(np.full(344, 0.98), np.ones(344, dtype=bool))
    low, high = np.quantile(result.chances()[:, confidence_bins(np.array([0.98]))], [0.025, 0.975])
    assert low < 0.995
    assert high < 1
    assert (result.rows, result.errors) == (344, 0)


def test_draws_cover_the_truth_as_often_as_they_claim() -> None:
    at = confidence_bins(np.array([0.6, 0.8, 0.95]))
    covered = []
    for seed in range(60):
        low, high = np.quantile(
            fit_calibration(*world(344, -0.4, 0.8, seed)).chances()[:, at], [0.025, 0.975], axis=0
        )
        truth = logistic(-0.4 + 0.8 * BIN_LOGITS[at])
        covered.append((low <= truth) & (truth <= high))
    assert np.mean(covered) > 0.9


def test_another_model_is_twice_as_uncertain_and_no_better() -> None:
    result = fit_calibration(*world(344, -0.4, 0.8))
    other = result.predictive()
    assert other.intercepts.var() == pytest.approx(2 * result.intercepts.var())
    assert np.log(other.slopes).var() == pytest.approx(2 * np.log(result.slopes).var())
    assert other.intercepts.mean() == pytest.approx(result.intercepts.mean())
    assert (other.rows, other.errors) == (result.rows, result.errors)


def test_it_is_written_and_read_as_plain_text(tmp_path: Path) -> None:
    result = fit_calibration(*world(344, 0.2, 0.9))
    result.save(tmp_path)
    again = load_calibration(tmp_path)
    np.testing.assert_allclose(again.chances(), result.chances(), atol=1e-5)
    assert (again.rows, again.errors, again.is_learnt) == (result.rows, result.errors, True)
    assert json.loads((tmp_path / CALIBRATION_FILE).read_text())["rows"] == 344


def test_a_version_without_one_is_taken_at_its_word(tmp_path: Path) -> None:
    result = load_calibration(tmp_path)
    assert not result.is_learnt
    np.testing.assert_allclose(result.chances()[0], logistic(BIN_LOGITS))
    assert result is IDENTITY_CALIBRATION


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"intercepts": [0], "slopes": [1], "rows": 1}'])
def test_a_damaged_one_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(UserError, match="damaged"):
        load_calibration(tmp_path)


def test_a_version_carries_what_its_out_of_fold_rows_teach(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec, tmp_path: Path
) -> None:
    write_version(tmp_path, trained, penguins, spec)
    result = load_calibration(tmp_path)
    assert result.rows == len(penguins)
    assert 0 < result.errors < 10
