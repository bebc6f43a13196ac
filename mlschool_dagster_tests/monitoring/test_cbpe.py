"""An estimate without labels is right where confidences mean what they meant, and says how sure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.modeling.calibration import (
    BINS,
    IDENTITY_CALIBRATION,
    confidence_bins,
    fit_calibration,
)
from mlschool_dagster.monitoring.cbpe import Estimate, expected_correct, summed

RNG_SEED = 11
MISLEADING = 0.55
"""Slope of the world's curve: this model is much too sure of itself."""


def chance(confidence: np.ndarray) -> np.ndarray:
    """How often the world's model is right at a confidence."""
    return np.asarray(1 / (1 + (1 / confidence - 1) ** MISLEADING))


def counts(confidence: np.ndarray) -> np.ndarray:
    return np.bincount(confidence_bins(confidence), minlength=BINS)[None]


def estimate(confidence: np.ndarray, reference: int = 344, seed: int = 0) -> Estimate:
    """Of rows with `confidence`, calibrated on so many rows of the world."""
    rng = np.random.default_rng([RNG_SEED, seed])
    known = rng.beta(5, 1, reference)
    calibration = fit_calibration(known, rng.random(reference) < chance(known))
    result = expected_correct(counts(confidence), calibration).estimate(0)
    assert result is not None
    return result


@pytest.mark.parametrize(
    "shape", [(2, 1), *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(5, 1), (12, 1)])]
)
def test_estimates_follow_a_shift_of_confidences_and_cover_what_comes_true(
    shape: tuple[float, float],
) -> None:
    covered, errors, raw = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        confidence = rng.beta(*shape, 500)
        realised = (rng.random(500) < chance(confidence)).mean()
        result = estimate(confidence, seed=seed)
        covered.append(result.low <= realised <= result.high)
        errors.append(abs(result.accuracy - realised))
        raw.append(abs(confidence.mean() - realised))
    assert np.mean(covered) >= 0.9
    assert np.mean(errors) < 0.03
    assert np.mean(errors) < np.mean(raw)


def test_the_interval_holds_both_doubts() -> None:
    many, few = np.full(100_000, 0.9), np.full(50, 0.9)
    widths = {
        (reference, rows.size): estimate(rows, reference).high - estimate(rows, reference).low
        for reference in (100, 30_000)
        for rows in (few, many)
    }
    # However many rows: what the calibration does not know stays unknown; and the other way round.
    assert widths[100, 100_000] > 5 * widths[30_000, 100_000]
    assert widths[30_000, 50] > 5 * widths[30_000, 100_000]


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_an_estimate_is_a_share_within_its_interval(confidences: list[float]) -> None:
    result = expected_correct(counts(np.array(confidences)), IDENTITY_CALIBRATION).estimate(0)
    assert result is not None
    assert 0 <= result.low <= result.accuracy <= result.high <= 1
    assert result.accuracy == pytest.approx(np.mean(confidences), abs=0.015)


def test_versions_add_up() -> None:
    sure, unsure = counts(np.full(300, 0.99)), counts(np.full(100, 0.6))
    parts = [
        expected_correct(sure, IDENTITY_CALIBRATION),
        expected_correct(unsure, IDENTITY_CALIBRATION),
    ]
    result = summed(parts, 1).estimate(0)
    assert result is not None
    assert result.accuracy == pytest.approx((300 * 0.99 + 100 * 0.6) / 400, abs=0.01)
    assert summed([], 1).estimate(0) is None
