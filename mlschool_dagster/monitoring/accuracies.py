"""The accuracy of the window, its versions and its segments: estimated, and measured by labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlschool_dagster.dataset.spec import MODEL_VERSION
from mlschool_dagster.modeling.calibration import IDENTITY_CALIBRATION, ConfidenceCalibration
from mlschool_dagster.monitoring.estimation import Estimate, Expectation, expectation, together
from mlschool_dagster.monitoring.segments import Group
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster.monitoring.tally import Tally


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of some rows.

    ``estimate`` is that of all of them, ``estimate_of_labelled`` what the labelled ones alone let
    expect, each None without rows; ``measured`` and its 95 % interval rest on the labelled rows,
    None without any.
    """

    rows: int
    labelled: int
    correct: int
    estimate: Estimate | None
    estimate_of_labelled: Estimate | None
    measured: float | None
    interval: tuple[float, float] | None

    @property
    def coverage(self) -> float:
        """The labelled share of the rows; 0 without rows."""
        return self.labelled / self.rows if self.rows else 0.0

    @property
    def estimated(self) -> float | None:
        """The estimated accuracy of all rows; None without rows."""
        return self.estimate.accuracy if self.estimate else None


class Accuracies:
    """A tally with small segments pooled, and what its confidences let expect."""

    def __init__(self, tally: Tally, calibrations: Mapping[str, ConfidenceCalibration]) -> None:
        self._names, size = tally.segments.names, len(tally.segments)
        rows = sum((part.rows.sum(axis=1) for part in tally.versions.values()), np.zeros(size, int))
        places = tally.segments.pooled(rows)
        self._versions = {
            version: part.pooled(places) for version, part in sorted(tally.versions.items())
        }
        self._expected = {
            version: expectation(
                np.vstack([part.rows, part.labelled]),
                calibrations.get(version, IDENTITY_CALIBRATION),
            )
            for version, part in self._versions.items()
        }
        self._all = together(self._expected.values(), 2 * size)
        self._correct = sum((part.correct for part in self._versions.values()), np.zeros(size, int))
        self.present = {
            column: [place for place in segments if self._all.rows[place]]
            for column, segments in tally.segments.columns()
        }

    def accuracy(self, place: int) -> Accuracy:
        """That of the segment at `place`, whichever version answered."""
        return _accuracy(self._all, place, int(self._correct[place]))

    def versions(self) -> dict[str, Accuracy]:
        """That of each version, over all segments."""
        return {
            version: _accuracy(self._expected[version], 0, int(part.correct[0]))
            for version, part in self._versions.items()
        }

    def columns(self) -> dict[str, list[Group]]:
        """The segments with rows by column, the versions as one more column."""
        columns = {
            column: [
                _group(self._names[place], self._all, place, int(self._correct[place]))
                for place in places
            ]
            for column, places in self.present.items()
        }
        columns[MODEL_VERSION] = [
            _group(f"{MODEL_VERSION}={version}", self._expected[version], 0, int(part.correct[0]))
            for version, part in self._versions.items()
        ]
        return columns


def _accuracy(expected: Expectation, place: int, correct: int) -> Accuracy:
    labelled_place = place + len(expected.rows) // 2
    labelled = int(expected.rows[labelled_place])
    return Accuracy(
        rows=int(expected.rows[place]),
        labelled=labelled,
        correct=correct,
        estimate=expected.estimate(place),
        estimate_of_labelled=expected.estimate(labelled_place),
        measured=correct / labelled if labelled else None,
        interval=wilson_interval(correct, labelled) if labelled else None,
    )


def _group(name: str, expected: Expectation, place: int, correct: int) -> Group:
    labelled = int(expected.rows[place + len(expected.rows) // 2])
    return Group(name, int(expected.rows[place]), labelled, correct, expected.drawn[:, place])
