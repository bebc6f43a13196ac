"""The reference of a version, profiled once, and the summary of a window in the same cells.

All drift statistics are functions of the two, so that a window is read once, in chunks.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.multivariate import JOINT_ROWS, Design
from mlschool_dagster.monitoring.profiles import Profile, cells_at, reference_cells
from mlschool_dagster.monitoring.statistics import Counts, Floats

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class WindowSummary:
    """The sufficient statistics for drift of a window's rows, or of the reference's; they add up.

    ``profile`` and ``residuals`` (of each numeric column, given the others, in cells at those of
    the reference) count every row;
    ``sample`` has at most `JOINT_ROWS` rows of a design's variables, those with the least ``keys``,
    which are random.
    """

    profile: Profile
    residuals: Mapping[str, Counts]
    sample: Floats
    keys: Floats

    def __add__(self, other: "WindowSummary") -> "WindowSummary":
        """The rows of both."""
        keys = np.concatenate([self.keys, other.keys])
        kept = np.argsort(keys)[:JOINT_ROWS]
        return WindowSummary(
            self.profile + other.profile,
            {name: counted + other.residuals[name] for name, counted in self.residuals.items()},
            np.vstack([self.sample, other.sample])[kept],
            keys[kept],
        )


class ReferenceProfile:
    """The profile of the rows `reference`, with which windows of the data set `spec` are compared.

    Raises:
        UserError: the reference lacks a column that the spec names.
    """

    def __init__(self, reference: "pd.DataFrame", spec: DataSpec) -> None:
        needed = [*spec.input_names, PREDICTION, CONFIDENCE]
        lacking = [name for name in needed if name not in reference]
        if lacking:
            raise UserError(
                f"The reference lacks the column {', '.join(lacking)}; register the version again."
            )
        self.spec = spec
        self.cells = reference_cells(reference, spec)
        self.design = Design(reference, self.cells, spec)
        self._relations = self.design.relations()
        own = self.design.variables.tolist()
        self._positions = {column.name: own.index(column.name) for column in spec.numeric}
        left_out = self._relations.left_out_residuals(self.design.matrix)
        self._residual_cells = {
            name: cells_at(left_out[reference[name].notna().to_numpy(), at], -np.inf, np.inf)
            for name, at in self._positions.items()
        }
        self._nothing = self._part(reference.iloc[:0], np.random.default_rng(0))
        keys = np.random.default_rng(0).random(len(reference))
        places = self.cells.places(reference)
        self.own = self._nothing + self._counted(
            reference, places, self.design.matrix, left_out, keys
        )

    def unexplained_spread(self, column: str) -> float:
        """The residual spread of a numeric column given the others, as a share of its own."""
        return math.sqrt(self._relations.variances[self._positions[column]])

    def summary(self, chunks: "Iterable[pd.DataFrame]") -> WindowSummary:
        """The rows of all `chunks` (`snapshot.captures_table`), of which one at a time is needed.

        The sample depends on the rows, their order and nothing else.
        """
        rng = np.random.default_rng(0)
        total = self._nothing
        for chunk in chunks:
            total += self._part(chunk, rng)
        return total

    def _part(self, rows: "pd.DataFrame", rng: np.random.Generator) -> WindowSummary:
        places = self.cells.places(rows)
        matrix = self.design.of(rows, places)
        residuals = self._relations.residuals(matrix)
        return self._counted(rows, places, matrix, residuals, rng.random(len(rows)))

    def _counted(
        self,
        rows: "pd.DataFrame",
        places: Mapping[str, Counts],
        matrix: Floats,
        residuals: Floats,
        keys: Floats,
    ) -> WindowSummary:
        return WindowSummary(
            self.cells.profile(rows, places),
            {
                # Without the value itself there is nothing that the others leave unexplained.
                name: np.bincount(
                    cells.places(residuals[places[name] >= 0, self._positions[name]]),
                    minlength=cells.cells,
                )
                for name, cells in self._residual_cells.items()
            },
            matrix,
            keys,
        )
