"""Segments: rows that share a value of a categorical column, their role, or the model's version.

A segment is named ``column=value``; rows without a value are ``column=missing``. Segments of fewer
than `SMALL` rows, and values that the spec does not know, are pooled as ``column=other``: a handful
of rows allows no verdict.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.capture.records import Role
from mlschool_dagster.dataset.spec import ROLE, DataSpec
from mlschool_dagster.monitoring.cbpe import central_interval
from mlschool_dagster.monitoring.metrics import ALL
from mlschool_dagster.monitoring.profiles import codes
from mlschool_dagster.monitoring.statistics import corrected_z, difference_interval

if TYPE_CHECKING:
    import pandas as pd

Codes = npt.NDArray[np.intp]
Counts = npt.NDArray[np.int64]

OTHER = "other"
MISSING = "missing"

SMALL = 30
"""Fewer rows than this are pooled, and fewer labelled ones not judged: a share is then known to no
better than some 0.18 either way."""


class Segments:
    """The segments of a data set in a fixed order, all rows together first."""

    def __init__(self, spec: DataSpec) -> None:
        self._values = {
            column.name: tuple(dict.fromkeys((*column.categories, OTHER, MISSING)))
            for column in spec.categorical
        }
        self._values[ROLE] = (*(role.value for role in Role), OTHER)
        self.names = (
            ALL,
            *(f"{name}={value}" for name, values in self._values.items() for value in values),
        )

    def __len__(self) -> int:
        return len(self.names)

    def columns(self) -> Iterator[tuple[str, range]]:
        """Each column with the positions of its segments."""
        start = 1
        for name, values in self._values.items():
            yield name, range(start, start + len(values))
            start += len(values)

    def positions(self, frame: "pd.DataFrame") -> Codes:
        """The segments in which each row of `frame` is, shape (1 + columns, rows)."""
        positions = np.zeros((1 + len(self._values), len(frame)), dtype=np.intp)
        for row, (name, segments) in enumerate(self.columns(), start=1):
            values = self._values[name]
            places = codes(frame[name], values)
            places[places < 0] = values.index(OTHER)
            if MISSING in values:
                places[frame[name].isna().to_numpy()] = values.index(MISSING)
            positions[row] = places + segments.start
        return positions

    def pooled(self, rows: Counts) -> Codes:
        """Where each segment is counted, by how many `rows` it has: as itself, or as other.

        Roles are never pooled: a canary is judged however little it answers.
        """
        places = np.arange(len(self))
        for name, segments in self.columns():
            if name != ROLE:
                other = segments[self._values[name].index(OTHER)]
                places[[place for place in segments if rows[place] < SMALL]] = other
        return places


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The counts of a segment, and draws of its number of correct predictions.

    ``drawn`` has shape (draws,), over all rows; ``correct`` counts right ones of the ``labelled``.
    """

    segment: str
    rows: int
    labelled: int
    correct: int
    drawn: Counts

    @property
    def is_pooled(self) -> bool:
        """Whether it pools segments that are too small to judge."""
        return self.segment.endswith(f"={OTHER}")


@dataclass(frozen=True, slots=True)
class Worst:
    """The segment with the lowest accuracy beside the rest of the rows.

    ``difference`` is its accuracy less that of the rest, ``low`` to ``high`` an interval that holds
    for all ``compared`` segments at once, at 95 % (Bonferroni). ``basis`` is ``labels``, or
    ``estimate`` where too few are labelled.
    """

    segment: str
    basis: str
    accuracy: float
    difference: float
    low: float
    high: float
    compared: int

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than the rest beyond chance."""
        return self.high < 0

    @property
    def summary(self) -> str:
        """One sentence."""
        kind = "accuracy" if self.basis == "labels" else "estimated accuracy"
        relation = f"{-self.difference:.2f} [{-self.high:.2f}, {-self.low:.2f}] below the rest"
        if self.is_worse:
            return f"The worst segment is {self.segment}: {kind} {self.accuracy:.2f}, {relation}."
        return (
            f"No segment is worse than the rest beyond chance; {self.segment} comes last of "
            f"{self.compared} with {kind} {self.accuracy:.2f}."
        )


def worst_segment(columns: Mapping[str, Sequence[Group]]) -> Worst | None:
    """The segment whose difference to the rest of its column is surely the lowest, if any.

    By labels if two segments of a column have `SMALL` labelled rows, else by estimates; None if
    neither allows a comparison. The difference of labelled shares has Newcombe's interval.
    """
    by_labels = list(_comparable(columns, "labelled"))
    if by_labels:
        z = corrected_z(len(by_labels))
        compared = [_by_labels(group, rest, z, len(by_labels)) for group, rest in by_labels]
    else:
        by_rows = list(_comparable(columns, "rows"))
        compared = [_by_estimate(group, rest, len(by_rows)) for group, rest in by_rows]
    return min(compared, key=lambda worst: worst.high, default=None)


def _comparable(
    columns: Mapping[str, Sequence[Group]], counted: str
) -> Iterator[tuple[Group, Group]]:
    """Each segment that can be judged, with the rest of its column."""
    for groups in columns.values():
        for group in groups:
            rest = _summed([other for other in groups if other is not group])
            sizes: list[Any] = [getattr(part, counted) for part in (group, rest)]
            if min(sizes) >= SMALL and not group.is_pooled:
                yield group, rest


def _summed(groups: Sequence[Group]) -> Group:
    return Group(
        "",
        sum(group.rows for group in groups),
        sum(group.labelled for group in groups),
        sum(group.correct for group in groups),
        np.sum([group.drawn for group in groups], axis=0, dtype=np.int64),
    )


def _by_labels(group: Group, rest: Group, z: float, compared: int) -> Worst:
    accuracy = group.correct / group.labelled
    low, high = difference_interval(group.correct, group.labelled, rest.correct, rest.labelled, z)
    difference = accuracy - rest.correct / rest.labelled
    return Worst(group.segment, "labels", accuracy, difference, low, high, compared)


def _by_estimate(group: Group, rest: Group, compared: int) -> Worst:
    accuracies = group.drawn / group.rows
    differences = accuracies - rest.drawn / rest.rows
    low, high = central_interval(differences, 0.05 / compared)
    means = float(accuracies.mean()), float(differences.mean())
    return Worst(group.segment, "estimate", *means, low, high, compared)
