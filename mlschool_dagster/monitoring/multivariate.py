"""Drift in the relations between columns: conditional means, and a permuted Hotelling test."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlschool_dagster.dataset.spec import DataSpec, NumericColumn
from mlschool_dagster.monitoring.profiles import Cells, Profile, codes, normal_scores
from mlschool_dagster.monitoring.statistics import (
    Counts,
    Floats,
    TestResult,
    permuted_p_value,
)

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

DIRECTIONS = 24
"""Most variables in the joint test: with their products they are 324 features."""

MOST_DOUBT = 0.05
"""How well the variance of a column must be known, as a squared relative error, for chance to move
its mean normally. In 344 rows it is where the rarer of two values has a share of 6 %."""


class Design:
    """The reference's inputs as standardised variables, and how each depends on the others.

    A numeric column is one variable: the normal score of a value's rank among the reference's (van
    der Waerden 1952), in standard deviations of these. It is the same in any unit of the column,
    and no value is farther out than the reference's own outermost. A categorical column is a
    variable a category but the last: 1 or 0, less the reference's share. Where a value is missing
    or unknown its variables are 0, as if it were average.
    """

    def __init__(self, reference: "pd.DataFrame", cells: Cells, spec: DataSpec) -> None:
        self._cells, self._spec = cells, spec
        self._scores: dict[str, Floats] = {}
        self.judged: list[str] = []
        """The numeric columns whose mean chance moves normally."""
        variables: list[str] = []
        profile = cells.profile(reference)
        for column in spec.columns:
            counts = profile.column(column.name).counts
            if isinstance(column, NumericColumn):
                scores, excess = _standardised_scores(counts)
                # What is missing has the position -1: the last row.
                self._scores[column.name] = np.append(scores, 0.0)[:, None]
                if excess < MOST_DOUBT * counts.sum():
                    self.judged.append(column.name)
                variables.append(column.name)
            else:
                centre = counts[:-2] / max(1, counts[:-1].sum())
                self._scores[column.name] = np.vstack(
                    [np.eye(centre.size + 1, centre.size) - centre, np.zeros(centre.size)]
                )
                variables.extend([column.name] * centre.size)
        self.variables = np.array(variables)
        self.rows = len(reference)
        self.matrix = self.of(reference)
        self.covariance = np.atleast_2d(self.matrix.T @ self.matrix) / max(1, self.rows - 1)
        self._ridge = _ridge(
            np.asarray(np.linalg.eigvalsh(self.covariance)), self.rows / ROWS_A_DIRECTION
        )

    def of(self, frame: "pd.DataFrame", places: "Mapping[str, Counts] | None" = None) -> Floats:
        """The variables of each row of `frame`, shape (rows, variables).

        `places` are the cells of its quantities, if they are known.
        """
        at = self._cells.places(frame) if places is None else places
        parts = [
            self._scores[column.name][
                at[column.name]
                if isinstance(column, NumericColumn)
                else codes(frame[column.name], column.categories)
            ]
            for column in self._spec.columns
        ]
        return np.hstack(parts)

    def means(self, profile: Profile) -> Floats:
        """The mean of each variable over the rows of `profile`; there must be a row."""
        parts = []
        for column in self._spec.columns:
            counts = profile.column(column.name).counts
            if not isinstance(column, NumericColumn):
                counts = counts[:-1]
            parts.append(counts @ self._scores[column.name][:-1])
        return np.concatenate(parts) / profile.rows

    def relations(self, excluded: Iterable[str] = ()) -> "Relations":
        """How each variable depends on the others, but for those of the columns `excluded`."""
        active = np.flatnonzero(~np.isin(self.variables, list(excluded)))
        among = self.covariance[np.ix_(active, active)]
        values, vectors = np.linalg.eigh(among)
        values = np.maximum(values, 0.0)
        precision = (vectors / (values + self._ridge)) @ vectors.T
        directions = float((values / (values + self._ridge)).sum())
        return Relations(active, precision, self.rows, max(1.0, self.rows - 1 - directions))


def _standardised_scores(counts: Counts) -> tuple[Floats, float]:
    """The normal score of each cell, standardised, and the excess of the fourth moment over 1.

    The excess divided by the number of values is the squared relative error of their variance.
    Where all values are equal, so are their scores.
    """
    total = int(counts.sum())
    if not total:
        return np.zeros(counts.size), math.inf
    scores = normal_scores(counts)
    scores -= scores @ counts / total
    spread = math.sqrt(float(scores**2 @ counts) / max(1, total - 1))
    if spread <= DETERMINED:
        return scores, math.inf
    scores /= spread
    return scores, float(scores**4 @ counts) / total - 1


def _ridge(values: Floats, most: float) -> float:
    """Ridge added to variances, so that no more than `most` directions explain anything.

    `values` are the variances along the principal directions. A direction counts by the part of it
    that ridge regression keeps (Hoerl and Kennard 1970).
    """
    low, high = math.log(DETERMINED), math.log(max(1.0, float(values.sum())) / DETERMINED)

    def kept(ridge: float) -> float:
        return float((values / (values + math.exp(ridge))).sum())

    if kept(low) <= most:
        return math.exp(low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) > most else (low, middle)
    return math.exp(high)


@dataclass(frozen=True, slots=True)
class Relations:
    """The linear regressions of each of some variables on all others of them, in the reference.

    ``active`` are their positions; ``precision`` is the inverse of their covariance, which holds
    all these regressions at once (Whittaker 1990, section 5.8); ``freedom`` is how many of the
    ``rows`` of the fit are left to estimate the residual variance.
    """

    active: NDArray[np.intp]
    precision: Floats
    rows: int
    freedom: float

    @property
    def variances(self) -> Floats:
        """Residual variance of each variable given the others."""
        return np.asarray((self.rows - 1) / self.freedom / np.diag(self.precision))

    def residuals(self, matrix: Floats) -> Floats:
        """Residuals given the others, row by row (or of one row of means)."""
        return np.asarray(matrix[..., self.active] @ self.precision / np.diag(self.precision))

    def distances(self, matrix: Floats) -> Floats:
        """How far out the others are from their mean, squared, in their own covariance."""
        given = matrix[..., self.active]
        projected = given @ self.precision
        whole = (given * projected).sum(axis=-1, keepdims=True)
        return np.asarray(np.maximum(0.0, whole - projected**2 / np.diag(self.precision)))

    def left_out_residuals(self, matrix: Floats) -> Floats:
        """The residuals of the rows of the fit, each as if its own row had not been in it.

        They are distributed as those of new rows (Cook and Weisberg 1982, section 2.2.1).
        """
        leverage = 1 / self.rows + self.distances(matrix) / max(1, self.rows - 1)
        return np.asarray(self.residuals(matrix) / (1 - np.minimum(leverage, 0.99)))

    def tests(self, means: Floats, rows: int) -> list[TestResult]:
        """Whether each variable's mean moved by more than the others' means explain.

        The analysis of covariance, or Rao's test of additional information (Rao 1948), with the
        reference's covariance, which is all that is known before a window of so many `rows` comes.
        The effect is the unexplained difference, in standard deviations of the whole column.
        """
        from scipy.stats import t

        differences = self.residuals(means)
        variances = self.variances * (1 / rows + 1 / self.rows + self.distances(means) / self.rows)
        statistics = differences / np.sqrt(variances)
        p_values = 2 * t.sf(np.abs(statistics), self.freedom)
        return [
            TestResult(*map(float, values))
            for values in zip(statistics, p_values, np.abs(differences), strict=True)
        ]


def shifts_given_others(
    design: Design, current: Profile, columns: Sequence[str], excluded: Sequence[str], alpha: float
) -> dict[str, TestResult]:
    """Test whether each numeric column moved away from its regression on the others.

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
        barred = [*excluded, *results]
        tested = _tested(design, means, current.rows, remaining, barred)
        clearest = min(
            tested, key=lambda name: (tested[name].p_value, -abs(tested[name].statistic))
        )
        if tested[clearest].p_value * len(columns) > alpha:
            return {**results, **tested}
        results[clearest] = tested[clearest]
        remaining.remove(clearest)
    return results


def _tested(
    design: Design, means: Floats, rows: int, columns: Sequence[str], barred: Sequence[str]
) -> dict[str, TestResult]:
    """The test of each of `columns`; those `barred` explain nothing but are tested themselves."""
    results: dict[str, TestResult] = {}
    together = [column for column in columns if column not in barred]
    for names, without in (
        (together, barred),
        *(
            ([name], [other for other in barred if other != name])
            for name in set(columns) & set(barred)
        ),
    ):
        if names:
            relations = design.relations(without)
            tests = relations.tests(means, rows)
            of = design.variables[relations.active].tolist()
            results |= {name: tests[of.index(name)] for name in names}
    return {column: results[column] for column in columns}


def joint_test(current: Floats, reference: Floats) -> TestResult:
    """Whether two samples of rows share one joint distribution, up to its second moments.

    ``current`` and ``reference`` are variables as a `Design` makes them, (rows, variables).
    Hotelling's T-squared (1931) of all variables and their products: the domain classifier that is
    linear in these (Lopez-Paz and Oquab 2017), without a fit; of many variables, the `DIRECTIONS`
    in which rows vary most stand for all. Its p-value is exact, from random permutations of the
    rows (Phipson and Smyth 2010), and beyond their number by a gamma distribution with the moments
    of the permuted statistics. The effect is the distance of the two means
    beyond that of permuted rows, in standard deviations along the direction that parts them best.
    """
    size, other = len(reference), len(current)
    features = _whitened(_with_products(_widest(np.vstack([reference, current]))))
    own, permuted = features[:size].sum(axis=0), _permuted_sums(features, size)
    # The features sum to zero, so that one sample's sum says what the other's is.
    scale = (1 / size + 1 / other) ** 2
    squared, by_chance = float(own @ own) * scale, (permuted**2).sum(axis=1) * scale
    beyond_chance = squared - float(by_chance.mean())
    statistic = squared / math.sqrt(scale)
    p_value = permuted_p_value(squared, [by_chance])
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


def _widest(variables: Floats) -> Floats:
    """The variables, or if they are too many the directions in which they vary most."""
    if variables.shape[1] <= DIRECTIONS:
        return variables
    centred = variables - variables.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ vectors[:, -DIRECTIONS:])


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
