"""Drift in what columns have to do with one another, which no column shows by itself."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlschool_dagster.modeling.spec import DataSpec, NumericColumn
from mlschool_dagster.monitoring.profiles import Cells, Profile, codes
from mlschool_dagster.monitoring.statistics import Floats, TestResult

if TYPE_CHECKING:
    import pandas as pd

JOINT_ROWS = 2_000
"""Most rows of window and reference each in the joint test. The reference's own sampling error is
the greater one from a window of its size on, so that further rows would hardly add power."""

PERMUTATIONS = 1_999
"""The least p-value of the joint test is then 1/2,000."""

PERMUTATIONS_AT_ONCE = 200
"""Bounds the memory that they take."""

ROWS_A_DIRECTION = 10
"""Rows that a direction of the joint test takes: in more directions, chance drowns the drift."""

DETERMINED = 1e-6
"""The least share of a column's variance that is taken for more than rounding."""


class Design:
    """The reference's inputs as standardised variables, and how each depends on the others.

    A numeric column is one variable: its distance from the reference's mean in standard deviations.
    A categorical one is a variable a category but the last: 1 or 0, less the reference's share.
    Where a value is missing or unknown its variables are 0, as if it were average.
    """

    def __init__(self, reference: "pd.DataFrame", cells: Cells, spec: DataSpec) -> None:
        self._cells, self._spec = cells, spec
        self._centres: dict[str, tuple[Floats, float]] = {}
        variables: list[str] = []
        for column in spec.columns:
            if isinstance(column, NumericColumn):
                values = cells.quantities[column.name].clipped(reference[column.name])
                known = values[~np.isnan(values)]
                spread = float(known.std(ddof=1)) if known.size > 1 else 0.0
                centre = known.mean() if known.size else 0.0
                # Where nothing varies, or nothing is known, the plausible range is the unit.
                reach = column.maximum - column.minimum
                unit = spread if spread > DETERMINED * reach else reach
                self._centres[column.name] = np.array([centre]), unit
                variables.append(column.name)
            else:
                positions = codes(reference[column.name], column.categories)
                counts = np.bincount(positions[positions >= 0], minlength=len(column.categories))
                self._centres[column.name] = counts[:-1] / max(1, counts.sum()), 1.0
                variables.extend([column.name] * (len(column.categories) - 1))
        self.variables = np.array(variables)
        self.rows = len(reference)
        self.matrix = self.of(reference)
        self.covariance = np.atleast_2d(self.matrix.T @ self.matrix) / max(1, self.rows - 1)

    def spread(self, column: str) -> float:
        """The standard deviation of a numeric column in the reference, in the column's unit."""
        return self._centres[column][1]

    def of(self, frame: "pd.DataFrame") -> Floats:
        """The variables of each row of `frame`: (rows, variables)."""
        parts = []
        for column in self._spec.columns:
            centre, spread = self._centres[column.name]
            if isinstance(column, NumericColumn):
                values = self._cells.quantities[column.name].clipped(frame[column.name])
                part = np.nan_to_num((values - centre[0]) / spread)[:, None]
            else:
                # What is unknown has the position -1: the last row.
                by_category = np.vstack([np.eye(centre.size + 1, centre.size) - centre, 0 * centre])
                part = by_category[codes(frame[column.name], column.categories)]
            parts.append(part)
        return np.hstack(parts)

    def means(self, profile: Profile) -> Floats:
        """The mean of each variable over the rows of `profile`; there must be a row."""
        parts = []
        for column in self._spec.columns:
            centre, spread = self._centres[column.name]
            if isinstance(column, NumericColumn):
                values = profile.quantities[column.name]
                part = (values.sums.sum() - values.present * centre) / spread
            else:
                counts = profile.categories[column.name].counts[:-1]
                part = counts[:-1] - counts.sum() * centre
            parts.append(part / profile.rows)
        return np.concatenate(parts)

    def explanation(self, column: str, excluded: Iterable[str] = ()) -> "Explanation":
        """How a numeric column depends on the others, but for those `excluded`."""
        own = int(np.flatnonzero(self.variables == column)[0])
        given = np.flatnonzero(~np.isin(self.variables, [column, *excluded]))
        among = self.covariance[np.ix_(given, given)]
        inverse = np.asarray(np.linalg.pinv(among, hermitian=True), dtype=np.float64)
        weights = inverse @ self.covariance[given, own]
        freedom = self.rows - 1 - given.size
        left = self.covariance[own, own] - weights @ self.covariance[given, own]
        variance = max(left, DETERMINED) * (self.rows - 1) / max(1, freedom)
        return Explanation(own, given, weights, inverse, variance, freedom)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The linear regression of one variable (`own`) on others (`given`) in the reference."""

    own: int
    given: NDArray[np.intp]
    weights: Floats
    inverse: Floats
    variance: float
    freedom: int

    def residuals(self, matrix: Floats) -> Floats:
        """What the others leave unexplained, row by row (or of one row of means)."""
        contrast = np.zeros(matrix.shape[-1])
        contrast[self.own], contrast[self.given] = 1.0, -self.weights
        return np.asarray(matrix @ contrast)

    def left_out_residuals(self, matrix: Floats) -> Floats:
        """The residuals of the rows of the fit, each as if its own row had not been in it.

        They are distributed as those of new rows (Cook and Weisberg 1982, section 2.2.1).
        """
        given = matrix[:, self.given]
        leverage = 1 / len(matrix) + np.einsum("ij,jk,ik->i", given, self.inverse, given) / (
            len(matrix) - 1
        )
        return np.asarray(self.residuals(matrix) / (1 - np.minimum(leverage, 0.99)))

    def test(self, means: Floats, rows: int, reference_rows: int) -> TestResult:
        """Whether the variable's mean moved by more than the others' means explain.

        The analysis of covariance, or Rao's test of additional information (Rao 1948), with the
        reference's covariance, which is all that is known before a window comes. The effect is the
        unexplained difference, in standard deviations of the whole column.
        """
        from scipy.stats import t

        difference = float(self.residuals(means))
        others = means[self.given]
        distance = float(others @ self.inverse @ others)
        variance = self.variance * (1 / rows + 1 / reference_rows + distance / reference_rows)
        statistic = difference / math.sqrt(variance)
        p_value = float(2 * t.sf(abs(statistic), max(1, self.freedom)))
        return TestResult(statistic, p_value, abs(difference))


def shifts_given_others(
    design: Design, current: Profile, columns: Sequence[str], excluded: Sequence[str], alpha: float
) -> dict[str, TestResult]:
    """Which numeric `columns` moved away from what the other columns explain.

    Columns depend on one another, so that what is left of them is narrow: a shift is seen that is
    far too small for the column by itself. A column that has moved would make those it explains
    look moved; so the clearest one, if it is significant at `alpha` over `columns`, explains no
    other one any more, and these are tested again, until none is left that is significant.
    `excluded` explain nothing from the beginning.
    """
    means = design.means(current)
    results: dict[str, TestResult] = {}
    remaining = list(columns)
    while remaining:
        tested = {
            name: design.explanation(name, [*excluded, *results]).test(
                means, current.rows, design.rows
            )
            for name in remaining
        }
        clearest = min(
            tested, key=lambda name: (tested[name].p_value, -abs(tested[name].statistic))
        )
        if tested[clearest].p_value * len(columns) > alpha:
            return {**results, **tested}
        results[clearest] = tested[clearest]
        remaining.remove(clearest)
    return results


def joint_test(current: Floats, reference: Floats) -> TestResult:
    """Whether two samples of rows share one joint distribution, up to its second moments.

    ``current`` and ``reference`` are variables as a `Design` makes them, (rows, variables).
    Hotelling's T-squared (1931) of all variables and their products: the domain classifier that is
    linear in these (Lopez-Paz and Oquab 2017), without a fit. Its p-value is exact, from random
    permutations of the rows (Phipson and Smyth 2010). The effect is the distance of the two means
    beyond that of permuted rows, in standard deviations along the direction that parts them best.
    """
    size, other = len(reference), len(current)
    features = _whitened(_with_products(np.vstack([reference, current])))
    own, permuted = features[:size].sum(axis=0), _permuted_sums(features, size)
    # The features sum to zero, so that one sample's sum says what the other's is.
    scale = (1 / size + 1 / other) ** 2
    squared, by_chance = float(own @ own) * scale, (permuted**2).sum(axis=1) * scale
    as_extreme = int((by_chance >= squared * (1 - 1e-9)).sum())
    beyond_chance = squared - float(by_chance.mean())
    statistic = squared / math.sqrt(scale)
    p_value = (as_extreme + 1) / (PERMUTATIONS + 1)
    return TestResult(statistic, p_value, math.sqrt(max(0.0, beyond_chance)))


def _permuted_sums(features: Floats, size: int) -> Floats:
    """The sums of the features of `size` rows drawn at random, `PERMUTATIONS` times."""
    rng, sums = np.random.default_rng(0), []
    for start in range(0, PERMUTATIONS, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, PERMUTATIONS - start)
        keys = rng.random((count, len(features)))
        drawn = keys <= np.partition(keys, size - 1, axis=1)[:, size - 1 : size]
        sums.append(drawn.astype(float) @ features)
    return np.vstack(sums)


def _with_products(variables: Floats) -> Floats:
    first, second = np.triu_indices(variables.shape[1])
    return np.hstack([variables, variables[:, first] * variables[:, second]])


def _whitened(features: Floats) -> Floats:
    """Uncorrelated directions of unit variance, the widest ones that the rows can carry."""
    centred = features - features.mean(axis=0)
    spread = centred.std(axis=0)
    varying = spread > DETERMINED
    centred = centred[:, varying] / spread[varying]
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = (values > DETERMINED) & (
        np.arange(values.size) >= values.size - len(centred) // ROWS_A_DIRECTION
    )
    return np.asarray(centred @ (vectors[:, kept] / np.sqrt(values[kept])))
