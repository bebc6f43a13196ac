"""The statistics behind the verdicts: two-sample tests, their correction, and an interval.

Each test takes plain arrays without missing values and returns its statistic, its p-value and an
effect size that does not grow with the number of rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: two-sided 95 % intervals."""

MINIMUM_EXPECTED_COUNT = 5.0
"""Cochran's rule (1954): below it the chi-square distribution is no guide to a cell's deviation."""

RESAMPLES = 9_999
"""Random tables drawn where cells are small; the least p-value is then 1/10,000 (Hope 1968)."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """What a two-sample test found; `effect` lies in [0, 1]."""

    __test__ = False

    statistic: float
    p_value: float
    effect: float


def kolmogorov_smirnov(current: Floats, reference: Floats) -> TestResult:
    """Whether two samples of a quantity share one distribution.

    The effect is the statistic itself: the largest distance between the two empirical distribution
    functions. The p-value is the asymptotic one, conservative under ties.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(current, reference, method="asymp")
    statistic = float(result.statistic)
    return TestResult(statistic, float(result.pvalue), statistic)


def welch(current: Floats, reference: Floats) -> TestResult:
    """Whether two samples of a share have the same mean (Welch 1947).

    The effect is the absolute difference of the means.
    """
    from scipy.stats import t

    difference = float(current.mean() - reference.mean())
    errors = np.array([current.var(ddof=1) / current.size, reference.var(ddof=1) / reference.size])
    if not errors.any():
        return TestResult(0.0, float(difference == 0), abs(difference))
    statistic = difference / math.sqrt(errors.sum())
    freedom = errors.sum() ** 2 / (errors**2 / [current.size - 1, reference.size - 1]).sum()
    return TestResult(statistic, float(2 * t.sf(abs(statistic), freedom)), abs(difference))


def homogeneity(current: Counts, reference: Counts) -> TestResult:
    """Whether two rows of counts over the same categories share one distribution.

    Pearson's chi-square test. Where an expected count is below `MINIMUM_EXPECTED_COUNT` the p-value
    comes from seeded random tables with the same margins (Patefield 1981) instead of the chi-square
    distribution. The effect is the total variation distance: the share of rows that would have to
    change category. For two categories it is the difference of their shares.
    """
    from scipy.stats import chi2, random_table

    table = np.stack([current, reference])
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=1, keepdims=True)
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(_chi_square(table, expected))
    if table.shape[1] == 1:
        return TestResult(statistic, 1.0, effect)
    if expected.min() >= MINIMUM_EXPECTED_COUNT:
        return TestResult(statistic, float(chi2.sf(statistic, table.shape[1] - 1)), effect)
    margins = random_table(table.sum(axis=1), table.sum(axis=0))
    drawn = _chi_square(margins.rvs(size=RESAMPLES, random_state=0), expected)
    # Rounding must not make a table that equals the observed one look less extreme.
    as_extreme = int((drawn >= statistic * (1 - 1e-9)).sum())
    return TestResult(statistic, (as_extreme + 1) / (RESAMPLES + 1), effect)


def _chi_square(tables: NDArray[Any], expected: Floats) -> Any:
    return ((tables - expected) ** 2 / expected).sum(axis=(-2, -1))


def benjamini_hochberg(p_values: Floats) -> Floats:
    """The p-values adjusted for their number, in the same order (Benjamini and Hochberg 1995).

    Rejecting where the adjusted value is at most alpha keeps the expected share of false rejections
    at alpha; where nothing has changed at all, so is the chance of any rejection.
    """
    count = p_values.size
    order = np.argsort(p_values)[::-1]
    scaled = p_values[order] * count / np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), or that of `z`; (0, 1) without a trial.

    Unlike the usual normal interval it keeps its coverage for few trials and shares near 0 or 1
    (Brown, Cai and DasGupta 2001).
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    weight = z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    # Rounding must not leave the share itself outside, where it is 0 or 1.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
