"""Profiles: the columns of a window as counts, which add up over chunks, in bounded memory.

Values are counted in cells: the reference's distinct values, and the gaps between them. Rank
statistics of the two samples are functions of these counts, so that a window is read once, in
chunks, and never sorted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.monitoring.statistics import Counts, Floats

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE_STEPS = 200
"""Cells of a confidence, which are compared by mean: half a cell is far below any effect."""


@dataclass(frozen=True, slots=True)
class Categories:
    """The values of a column that has a known set of them.

    ``counts`` has one entry a category, in order, and a last one for values outside the set.
    """

    missing: int
    counts: Counts

    @property
    def present(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    def __add__(self, other: "Categories") -> "Categories":
        """The values of both."""
        return Categories(self.missing + other.missing, self.counts + other.counts)


@dataclass(frozen=True, slots=True)
class Quantity:
    """The values of a numeric column.

    ``counts`` and ``sums`` (of the values) have one entry a cell: the gap below the first point,
    the first point, the gap above it, and so on; ``squares`` is the sum of the squared values.
    Values are in units of the cells: distances from their centre (see `QuantityCells`).
    """

    missing: int
    counts: Counts
    sums: Floats
    squares: float

    @property
    def present(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean; there must be a value."""
        return float(self.sums.sum()) / self.present

    @property
    def variance(self) -> float:
        """Their variance; there must be two values."""
        spread = self.squares - self.present * self.mean**2
        return max(0.0, spread) / (self.present - 1)

    def __add__(self, other: "Quantity") -> "Quantity":
        """The values of both."""
        return Quantity(
            self.missing + other.missing,
            self.counts + other.counts,
            self.sums + other.sums,
            self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """Rows as counts: every quantity and every categorical column by name."""

    rows: int
    quantities: Mapping[str, Quantity]
    categories: Mapping[str, Categories]

    def __add__(self, other: "Profile") -> "Profile":
        """The rows of both; they must have been counted in the same cells."""
        return Profile(
            self.rows + other.rows,
            {name: column + other.quantities[name] for name, column in self.quantities.items()},
            {name: column + other.categories[name] for name, column in self.categories.items()},
        )

    def column(self, name: str) -> Quantity | Categories:
        """The column of that name, of either kind."""
        return self.quantities[name] if name in self.quantities else self.categories[name]


@dataclass(frozen=True)
class QuantityCells:
    """How the values of a quantity are counted: `points`, ascending, and the gaps between them.

    What is summed are distances from ``centre`` in the unit ``unit``, so that neither the size of
    the values nor their unit matters. Values below `low` and above `high` are summed as if they
    were these: an absurd value, even an infinite one, moves no mean by more than any other.
    """

    points: Floats
    low: float
    high: float
    centre: float = 0.0
    unit: float = 1.0

    @cached_property
    def _edges(self) -> Floats:
        """Where the cells but the first begin: at each point, and at the next larger number."""
        return np.column_stack([self.points, np.nextafter(self.points, np.inf)]).ravel()

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return 2 * self.points.size + 1

    @cached_property
    def steps(self) -> Floats:
        """The points in units of the cells."""
        return self._scaled(self.points)

    def _scaled(self, values: Floats) -> Floats:
        return np.asarray((np.clip(values, self.low, self.high) - self.centre) / self.unit)

    def places(self, values: "pd.Series[Any] | Floats") -> Counts:
        """The cell of each value; -1 where it is missing."""
        known = np.asarray(values, dtype=float)
        cells = np.searchsorted(self._edges, known, side="right")
        cells[np.isnan(known)] = -1
        return cells

    def count(self, values: "pd.Series[Any] | Floats", places: "Counts | None" = None) -> Quantity:
        """The values in their cells, which are known to be `places`, or else looked up."""
        known = np.asarray(values, dtype=float)
        rows, cells = known.size, self.places(known) if places is None else places
        if cells.min(initial=0) < 0:
            known, cells = known[cells >= 0], cells[cells >= 0]
        scaled = self._scaled(known)
        return Quantity(
            rows - known.size,
            np.bincount(cells, minlength=self.cells),
            np.asarray(np.bincount(cells, scaled, minlength=self.cells), dtype=float),
            float(scaled @ scaled),
        )

    def mean(self, counted: Quantity) -> float:
        """The mean of values that were counted here, in the unit of the quantity."""
        return self.centre + self.unit * counted.mean


def cells_at(values: "pd.Series[Any] | Floats", low: float, high: float) -> QuantityCells:
    """Cells at the distinct finite `values`, or at 0 without any."""
    known = np.asarray(values, dtype=float)
    points = np.unique(known[np.isfinite(known)])
    return QuantityCells(points if points.size else np.zeros(1), low, high)


LARGEST = 8e307
"""Twice as much is still a number."""


def own_cells(values: "pd.Series[Any] | Floats") -> QuantityCells:
    """Cells at the distinct `values`, measured by these alone, whatever range is plausible.

    The centre is their median and the unit their standard deviation, or 1 where all are equal.
    As far beyond the least and the largest as these are apart, values count as equally absurd.
    """
    known = np.asarray(values, dtype=float)
    known = np.clip(known[np.isfinite(known)], -LARGEST, LARGEST)
    if not known.size:
        return cells_at(known, -LARGEST, LARGEST)
    # The middle one of the values, because a mean of two may be neither of them.
    centre = float(np.sort(known)[known.size // 2])
    distances = known - centre
    widest = float(np.abs(distances).max())
    unit = 1.0
    if widest:
        unit = max(widest * float((distances / widest).std(ddof=1)), np.finfo(float).tiny)
    reach = min(LARGEST, float(known.max() / 2 - known.min() / 2) * 2)
    low = max(-LARGEST, float(known.min()) - reach)
    high = min(LARGEST, float(known.max()) + reach)
    return QuantityCells(np.unique(known), low, high, centre, unit)


def codes(values: "pd.Series[Any]", categories: Sequence[str]) -> Counts:
    """The position of each value in `categories`; -1 for any other value and for a missing one."""
    import pandas as pd

    return np.asarray(pd.Categorical(values, categories=list(categories)).codes, dtype=np.int64)


def count_categories(values: "pd.Series[Any]", categories: Sequence[str]) -> Categories:
    """The values by category."""
    missing = int(values.isna().sum())
    known = codes(values, categories)
    counts = np.bincount(known[known >= 0], minlength=len(categories) + 1)
    counts[-1] = len(values) - missing - counts.sum()
    return Categories(missing, counts)


@dataclass(frozen=True, slots=True)
class Cells:
    """How rows are counted against one reference: its inputs, prediction and confidence."""

    quantities: Mapping[str, QuantityCells]
    categories: Mapping[str, tuple[str, ...]]

    def places(self, frame: "pd.DataFrame") -> dict[str, Counts]:
        """The cells of the values of each quantity."""
        return {name: cells.places(frame[name]) for name, cells in self.quantities.items()}

    def profile(
        self, frame: "pd.DataFrame", places: "Mapping[str, Counts] | None" = None
    ) -> Profile:
        """The rows of `frame` (`snapshot.captures_table`, or the reference) as counts.

        `places` are those of its values, if they are known.
        """
        at = self.places(frame) if places is None else places
        return Profile(
            len(frame),
            {name: cells.count(frame[name], at[name]) for name, cells in self.quantities.items()},
            {name: count_categories(frame[name], of) for name, of in self.categories.items()},
        )


def reference_cells(reference: "pd.DataFrame", spec: DataSpec) -> Cells:
    """The cells in which a window is compared with `reference`."""
    steps = np.linspace(0.0, 1.0, CONFIDENCE_STEPS + 1)
    return Cells(
        {
            **{column.name: own_cells(reference[column.name]) for column in spec.numeric},
            CONFIDENCE: QuantityCells(steps, 0.0, 1.0),
        },
        {
            **{column.name: column.categories for column in spec.categorical},
            PREDICTION: spec.target.classes,
        },
    )


def transport(current: Quantity, reference: Quantity, cells: QuantityCells) -> float:
    """The Wasserstein distance of two samples in the unit of the cells.

    It is the area between their distribution functions, and the mean distance by which values
    would have to move. `cells` must be at the values of `reference`. Inside a gap the area is exact
    unless the two functions cross there, where it is a lower bound.
    """
    points, n = cells.steps, current.present
    gaps, sums = current.counts[::2], current.sums[::2]
    above = (np.cumsum(current.counts) / n)[1::2]
    level = (np.cumsum(reference.counts) / reference.present)[1::2]
    width = np.diff(points)
    filled = above[:-1] * width + (gaps[1:-1] * points[1:] - sums[1:-1]) / n
    inner = np.abs(filled - level[:-1] * width).sum()
    below_first = (gaps[0] * points[0] - sums[0]) / n
    above_last = (sums[-1] - gaps[-1] * points[-1]) / n
    return float(inner + below_first + above_last)


def normal_scores(counts: Counts) -> Floats:
    """The normal score of each cell: where a normal value of the same rank lies.

    The rank is the mid-rank among the values counted, of which there must be one; a value beyond
    all of them comes next after the outermost (van der Waerden 1952).
    """
    from scipy.special import ndtri

    ranks = (np.cumsum(counts) - counts / 2 + 0.5) / (counts.sum() + 1)
    return np.asarray(ndtri(ranks))


def distance_in_deviations(current: Quantity, reference: Quantity, cells: QuantityCells) -> float:
    """How far two samples of a quantity are apart, in standard deviations of the reference.

    The larger of two Wasserstein distances, each of which is d for normal values that are shifted
    by d standard deviations. One is `transport`, in standard deviations: it sees few values that
    moved far. The other is that of the normal scores, which depend on the order of the values
    alone: it sees many values that moved little beside few large ones that make a standard
    deviation what it is (99 % zeros, heavy tails), and it is all that there is where the reference
    does not vary.
    """
    apart = np.cumsum(current.counts) / current.present
    apart -= np.cumsum(reference.counts) / reference.present
    scores = normal_scores(reference.counts)
    by_rank = float(np.abs(apart[:-1]) @ np.diff(scores))
    return max(by_rank, transport(current, reference, cells))
