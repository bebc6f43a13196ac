"""Two-sample tests, the correction for multiple testing, and confidence intervals of shares.

The tests take counts or means, never rows, so that their cost does not grow with the rows.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: two-sided 95 % intervals."""

MINIMUM_EXPECTED_COUNT = 5.0
"""Cochran's rule (1954): below it the chi-square distribution is no guide to a cell's deviation."""

BATCHES = (999, 9_000)
"""Random tables drawn where cells are small; the second batch only if the first leaves a doubt."""

ENOUGH = 100
"""Of these many as extreme as the observed one the share is known to a tenth of it."""

MINIMUM_UNCOMMON = 20.0
"""Rows of the smaller sample that are expected to differ from the commonest value: with fewer, sums
of chi-squares are no guide to the Anderson-Darling statistic."""

NODES = 40
NEGLIGIBLE = 1e-9

GROUPS = 160
"""Cells with a larger share than one of so many are groups of their own in the null distribution of
a statistic with ties."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of a two-sample test; `effect` is not negative."""

    __test__ = False

    statistic: float
    p_value: float
    effect: float


def anderson_darling(current: Counts, reference: Counts) -> tuple[float, float]:
    """Two-sample Anderson-Darling test: statistic and p-value.

    Both are counted in the same cells, in ascending order; values of one cell count as tied. Where
    the cells are the reference's distinct values and the gaps between them, this loses nothing of
    how the two samples lie among one another, and no sample needs to be sorted.

    The statistic is that of Scholz and Stephens (1987) for midranks, equation 7. Given the ties,
    its limit is a sum of chi-squares with the weights of `_weights`. Where few rows differ from the
    commonest value, the p-value comes from seeded random tables with the same margins instead.
    """
    filled = current + reference > 0
    current, reference = current[filled], reference[filled]
    n, total = int(current.sum()), int(current.sum() + reference.sum())
    ties = current + reference
    if ties.size == 1:
        return 0.0, 1.0
    statistic = float(_anderson_darling(current[None], ties)[0])
    uncommon = (total - int(ties.max())) * min(n, total - n) / total
    if uncommon >= MINIMUM_UNCOMMON:
        return statistic, _weighted_tail(
            statistic, _weights(np.bincount(_grouping(ties), ties) / total)
        )
    groups = _grouping(ties)
    smaller = current if n <= total - n else reference
    pooled, observed = (np.bincount(groups, counts).astype(np.int64) for counts in (ties, smaller))
    drawn = _random_rows(pooled, int(smaller.sum()))
    by_chance = (_anderson_darling(rows, pooled) for rows in drawn)
    extreme = float(_anderson_darling(observed[None], pooled)[0])
    return statistic, permuted_p_value(extreme, by_chance)


def _anderson_darling(current: NDArray[Any], ties: NDArray[Any]) -> Floats:
    """The statistic of each row of counts, shape (tables, cells), given the pooled ones."""
    n, total = float(current[0].sum()), float(ties.sum())
    below = np.cumsum(ties) - ties / 2
    spread = below * (total - below) - total * ties / 4
    apart = (total * (np.cumsum(current, axis=1) - current / 2) - n * below) ** 2
    inner = spread > 0
    weights = ties[inner] / spread[inner] * (total - 1) / total / (n * (total - n))
    return np.asarray(apart[:, inner] @ weights)


def _grouping(ties: Counts) -> Counts:
    """The group of each cell, ascending: a frequent one is one by itself, others share one."""
    total = ties.sum()
    frequent = ties * GROUPS >= total
    part = np.where(frequent, 0, (np.cumsum(ties) - ties / 2) * GROUPS // total)
    stretch = 2 * np.cumsum(frequent) - frequent
    return np.asarray(np.cumsum(np.diff(stretch * (GROUPS + 1) + part, prepend=-1) != 0) - 1)


def _weights(shares: Floats) -> Floats:
    """The weights of the chi-squares that the Anderson-Darling statistic tends to, given ties.

    ``shares`` are those of the cells, in order. The weights sum to 1; they tend to 1/(j(j+1))
    without ties, and a column of two values has a single one (the eigenvalues of equation 5 of
    Scholz and Stephens 1987, by their covariance kernel).
    """
    below = np.cumsum(shares) - shares / 2
    spread = below * (1 - below) - shares / 4
    inner = spread > 1e-12
    middle = np.tril(np.ones((shares.size, shares.size)), -1) + np.eye(shares.size) / 2
    root = np.sqrt(shares[inner] / spread[inner])[:, None] * middle[inner]
    projected = root * np.sqrt(shares)
    lost = root @ shares
    kernel = projected @ projected.T - np.outer(lost, lost)
    return np.asarray(np.maximum(np.linalg.eigvalsh(kernel), 0.0))


def _weighted_tail(value: float, weights: Floats) -> float:
    """The chance that the sum of chi-squares with these `weights`, ascending, exceeds `value`.

    All but the largest one are taken together as a gamma distribution with their mean and variance,
    over which the tail of the largest is integrated (generalised Gauss-Laguerre quadrature).
    """
    from scipy.special import erfc, gamma, roots_genlaguerre

    largest, rest = weights[-1], weights[:-1]
    mean, variance = rest.sum(), 2 * (rest**2).sum()
    if mean <= NEGLIGIBLE * largest:
        return float(erfc(math.sqrt(value / largest / 2)))
    shape, scale = float(mean**2 / variance), float(variance / mean)
    nodes, share = roots_genlaguerre(NODES, shape - 1)
    left = np.maximum(0.0, value - scale * nodes)
    return min(1.0, float(share @ erfc(np.sqrt(left / largest / 2)) / gamma(shape)))


def welch(
    means: tuple[float, float], variances: tuple[float, float], sizes: tuple[int, int]
) -> TestResult:
    """Welch's t-test (1947), from the means and variances of two samples of these sizes.

    The effect is the difference of the means.
    """
    from scipy.stats import ttest_ind_from_stats

    difference = abs(means[0] - means[1])
    if not any(variances):
        return TestResult(0.0, float(difference == 0), difference)
    first, second = zip(means, map(math.sqrt, variances), sizes, strict=True)
    test = ttest_ind_from_stats(*first, *second, equal_var=False)
    return TestResult(float(test.statistic), float(test.pvalue), difference)


def homogeneity(current: Counts, reference: Counts) -> TestResult:
    """Pearson's chi-square test of homogeneity of two rows of counts over the same categories.

    Where an expected count is below `MINIMUM_EXPECTED_COUNT` the p-value
    comes from seeded random tables with the same margins instead of the chi-square distribution.
    The effect is the total variation distance: the share of rows that would have to change
    category. For two categories it is the difference of their shares.
    """
    from scipy.stats import chi2

    table = np.stack([current, reference])
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=1, keepdims=True)
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    if table.shape[1] == 1:
        return TestResult(0.0, 1.0, effect)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(_chi_square(table, expected))
    if expected.min() >= MINIMUM_EXPECTED_COUNT:
        return TestResult(statistic, float(chi2.sf(statistic, table.shape[1] - 1)), effect)
    # Given the margins, the smaller row alone says what the other one is.
    columns, rows = table.sum(axis=0), table.sum(axis=1)
    smaller = int(np.argmin(rows))
    weights = (1 / expected).sum(axis=0)
    by_chance = (
        ((drawn - expected[smaller]) ** 2 * weights).sum(axis=1)
        for drawn in _random_rows(columns, int(rows[smaller]))
    )
    return TestResult(statistic, permuted_p_value(statistic, by_chance), effect)


def _random_rows(columns: Counts, size: int) -> Iterator[Counts]:
    """Counts of `size` rows drawn at random from so many of each kind: `BATCHES` at a time."""
    rng = np.random.default_rng(0)
    for count in BATCHES:
        yield rng.multivariate_hypergeometric(columns, size, size=count, method="marginals")


def permuted_p_value(observed: float, by_chance: Iterable[Floats]) -> float:
    """Permutation p-value of `observed`, from batches of statistics drawn under the null.

    Once `ENOUGH` are as large, no more are needed (Besag and Clifford 1991). Where none is, the
    p-value is below what their number resolves, and is that of a gamma distribution with the first
    three moments of all (Pearson's type III).
    """
    from scipy.stats import pearson3

    drawn: list[Floats] = []
    extreme = 0
    for batch in by_chance:
        drawn.append(batch)
        # Rounding must not make a table that equals the observed one look less extreme.
        extreme += int((batch >= observed * (1 - 1e-9)).sum())
        if extreme >= ENOUGH:
            break
    values = np.concatenate(drawn)
    p_value = (extreme + 1) / (values.size + 1)
    spread = float(values.std())
    if extreme or not spread:
        return p_value
    standardised = (values - values.mean()) / spread
    skew = float((standardised**3).mean())
    return min(p_value, float(pearson3.sf((observed - values.mean()) / spread, skew)))


def _chi_square(table: NDArray[Any], expected: Floats) -> Any:
    return ((table - expected) ** 2 / expected).sum()


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


def corrected_z(comparisons: int, alpha: float = 0.05) -> float:
    """The normal quantile for `comparisons` simultaneous intervals (Bonferroni)."""
    return NormalDist().inv_cdf(1 - alpha / (2 * max(1, comparisons)))


def difference_interval(
    successes: int, trials: int, other_successes: int, other_trials: int, z: float
) -> tuple[float, float]:
    """The interval of a share less an independent other one (Newcombe 1998, method 10).

    It is put together from Wilson's intervals of both, and keeps their coverage near 0 and 1.
    Neither may be without trials.
    """
    share, other = successes / trials, other_successes / other_trials
    low, high = wilson_interval(successes, trials, z)
    other_low, other_high = wilson_interval(other_successes, other_trials, z)
    difference = share - other
    return (
        difference - math.hypot(share - low, other_high - other),
        difference + math.hypot(high - share, other - other_low),
    )
