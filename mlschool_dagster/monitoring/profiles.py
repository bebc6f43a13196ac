"""A window's columns as counts: all that its statistics need, mergeable, in bounded memory.

The reference is small and fixed. How many values of a window lie on each of the reference's
distinct values, and in each gap between them, is all that the order of the two samples amounts to:
rank statistics are functions of these counts. So a window is read once, in chunks, and never
sorted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.modeling.spec import CONFIDENCE, PREDICTION, DataSpec
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

    Values below `low` and above `high` count as if they were these: an absurd value, even an
    infinite one, is told from others, but moves no mean to where no value can be.
    """

    points: Floats
    low: float
    high: float

    @cached_property
    def _edges(self) -> Floats:
        """Where the cells but the first begin: at each point, and at the next larger number."""
        return np.column_stack([self.points, np.nextafter(self.points, np.inf)]).ravel()

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return 2 * self.points.size + 1

    def clipped(self, values: "pd.Series[Any] | Floats") -> Floats:
        """The values as numbers in bounds; what is missing stays NaN."""
        return np.asarray(np.clip(np.asarray(values, dtype=float), self.low, self.high))

    def count(self, values: "pd.Series[Any] | Floats") -> Quantity:
        """The values in their cells."""
        known = self.clipped(values)
        rows = known.size
        known = known[~np.isnan(known)]
        cells = np.searchsorted(self._edges, known, side="right")
        return Quantity(
            rows - known.size,
            np.bincount(cells, minlength=self.cells),
            np.asarray(np.bincount(cells, known, minlength=self.cells), dtype=float),
            float(known @ known),
        )


def cells_at(values: "pd.Series[Any] | Floats", low: float, high: float) -> QuantityCells:
    """Cells at the distinct `values`, with missing ones left out; at `low` alone without any."""
    known = np.clip(np.asarray(values, dtype=float), low, high)
    points = np.unique(known[~np.isnan(known)])
    return QuantityCells(points if points.size else np.array([low]), low, high)


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

    def profile(self, frame: "pd.DataFrame") -> Profile:
        """The rows of `frame` (`frames.current_frame`, or the reference) as counts."""
        return Profile(
            len(frame),
            {name: cells.count(frame[name]) for name, cells in self.quantities.items()},
            {name: count_categories(frame[name], of) for name, of in self.categories.items()},
        )


def reference_cells(reference: "pd.DataFrame", spec: DataSpec) -> Cells:
    """The cells in which a window is compared with `reference`."""
    steps = np.linspace(0.0, 1.0, CONFIDENCE_STEPS + 1)
    return Cells(
        {
            **{
                column.name: cells_at(reference[column.name], column.minimum, column.maximum)
                for column in spec.numeric
            },
            CONFIDENCE: QuantityCells(steps, 0.0, 1.0),
        },
        {
            **{column.name: column.categories for column in spec.categorical},
            PREDICTION: spec.target.classes,
        },
    )


def transport(current: Quantity, reference: Quantity, cells: QuantityCells) -> float:
    """The Wasserstein distance of two samples in the unit of the quantity.

    It is the area between their distribution functions, and the mean distance by which values
    would have to move. `cells` must be at the values of `reference`. Inside a gap the area is exact
    unless the two functions cross there, where it is a lower bound.
    """
    points, n = cells.points, current.present
    gaps, sums = current.counts[::2], current.sums[::2]
    above = (np.cumsum(current.counts) / n)[1::2]
    level = (np.cumsum(reference.counts) / reference.present)[1::2]
    width = np.diff(points)
    filled = above[:-1] * width + (gaps[1:-1] * points[1:] - sums[1:-1]) / n
    inner = np.abs(filled - level[:-1] * width).sum()
    below_first = (gaps[0] * points[0] - sums[0]) / n
    above_last = (sums[-1] - gaps[-1] * points[-1]) / n
    return float(inner + below_first + above_last)
