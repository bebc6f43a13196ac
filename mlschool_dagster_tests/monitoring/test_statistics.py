"""The statistics agree with those that others have worked out, and with one another."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import anderson_ksamp

from mlschool_dagster.monitoring.profiles import cells_at
from mlschool_dagster.monitoring.statistics import (
    anderson_darling,
    homogeneity,
    welch,
    wilson_interval,
)

Sample = st.lists(st.integers(-5, 5), min_size=5, max_size=60)


def counted(values: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    cells = cells_at(reference, -100.0, 100.0)
    return anderson_darling(cells.count(values).counts, cells.count(reference).counts)


@settings(max_examples=40)
@given(seed=st.integers(0, 1_000), shift=st.floats(0, 1), size=st.integers(30, 300))
def test_counts_among_the_reference_give_the_statistic_of_the_sorted_samples(
    seed: int, shift: float, size: int
) -> None:
    rng = np.random.default_rng(seed)
    current, reference = rng.normal(shift, 1, size), np.sort(rng.normal(0, 1, 100))
    # Values in one gap of the reference count as tied.
    tied = np.searchsorted(reference, current) - 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        standardised = anderson_ksamp([tied, np.arange(100)]).statistic
    computed, _ = counted(current, reference)
    # Scipy subtracts the mean, 1, and divides by a standard deviation that tends to 0.761.
    assert computed == pytest.approx(1 + 0.761 * standardised, rel=0.03, abs=0.03)


@pytest.mark.parametrize(("statistic", "p_value"), [(1.933, 0.10), (2.492, 0.05), (3.857, 0.01)])
def test_the_tail_is_that_of_the_published_table(statistic: float, p_value: float) -> None:
    """Lewis (1961), table 1: the limiting distribution's percentage points."""
    rng = np.random.default_rng(1)
    result = [
        counted(rng.normal(shift, 1, 200), rng.normal(0, 1, 1_000))
        for shift in np.linspace(0, 0.3, 1_000)
    ]
    nearest = min(result, key=lambda pair: abs(pair[0] - statistic))
    assert nearest[1] == pytest.approx(p_value, rel=0.06)


@settings(max_examples=50)
@given(Sample, Sample)
def test_equal_distributions_are_never_significant_and_order_is_all_that_counts(
    first: list[int], second: list[int]
) -> None:
    current, reference = np.array(first, float), np.array(second, float)
    assert counted(reference, reference)[1] == pytest.approx(1)
    computed = counted(current, reference)
    assert 0 <= computed[1] <= 1
    assert counted(np.exp(current), np.exp(reference)) == pytest.approx(computed)


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


def test_rare_categories_among_many_rows_are_tested_as_fast() -> None:
    rare = homogeneity(np.array([999_990, 10]), np.array([344, 0]))
    assert rare.p_value > 0.5
    frequent = homogeneity(np.array([900_000, 100_000]), np.array([344, 0]))
    assert frequent.p_value < 0.001


def test_means_without_spread_differ_or_do_not() -> None:
    assert welch((0.3, 0.3), (0.0, 0.0), (5, 5)).p_value == 1
    assert welch((0.3, 0.4), (0.0, 0.0), (5, 5)).p_value == 0
