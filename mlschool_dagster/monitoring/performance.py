"""Performance: the accuracy of a window, estimated at once (CBPE) and measured when labels arrive.

By window, version and segment; the worst segment is named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import MODEL_VERSION, DataSpec
from mlschool_dagster.modeling.calibration import IDENTITY_CALIBRATION, ConfidenceCalibration
from mlschool_dagster.modeling.evaluation import ClassScores, class_scores
from mlschool_dagster.monitoring.cbpe import Estimate, ExpectedCorrect, expected_correct, summed
from mlschool_dagster.monitoring.confusion import ConfusionCounts, LabelSource
from mlschool_dagster.monitoring.fairness import FairnessReport, fairness
from mlschool_dagster.monitoring.quality import LONGEST_VALUE
from mlschool_dagster.monitoring.segments import Group, Worst, worst_segment
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster.monitoring.thresholds import DEFAULT_ACCURACY_THRESHOLD, TOLERATED_DIFFERENCE

if TYPE_CHECKING:
    import pandas as pd


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
    """Counts with small segments pooled, and the accuracy that their confidences let expect."""

    def __init__(
        self, counts: ConfusionCounts, calibrations: Mapping[str, ConfidenceCalibration]
    ) -> None:
        self._names, size = counts.segments.names, len(counts.segments)
        rows = sum(
            (part.rows.sum(axis=1) for part in counts.versions.values()), np.zeros(size, int)
        )
        places = counts.segments.pooled(rows)
        self._versions = {
            version: part.pooled(places) for version, part in sorted(counts.versions.items())
        }
        self._expected = {
            version: expected_correct(
                np.vstack([part.rows, part.labelled]),
                calibrations.get(version, IDENTITY_CALIBRATION),
            )
            for version, part in self._versions.items()
        }
        self._all = summed(self._expected.values(), 2 * size)
        self._correct = sum((part.correct for part in self._versions.values()), np.zeros(size, int))
        self.present = {
            column: [place for place in segments if self._all.rows[place]]
            for column, segments in counts.segments.columns()
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


LABELS_NAMED = 5
"""The most labels that a sentence names."""


class PerformanceVerdict(StrEnum):
    """The verdict on the model's accuracy."""

    DEGRADED = "degraded"
    ACCEPTABLE = "acceptable"
    INCONCLUSIVE = "inconclusive"
    NOT_ENOUGH_DATA = "not enough data"


_RELATIONS = {
    PerformanceVerdict.DEGRADED: "lies below",
    PerformanceVerdict.ACCEPTABLE: "reaches",
    PerformanceVerdict.INCONCLUSIVE: "cannot yet be distinguished from",
}


@dataclass(frozen=True, slots=True)
class LabelDelay:
    """Hours from prediction to label, over the labelled rows."""

    median_hours: float
    maximum_hours: float


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """The performance of a window's predictions.

    ``confusion[i][j]`` counts rows whose label is the i-th and whose prediction the j-th of
    ``classes``; ``unknown_labels`` counts labels that are none of them by label: these rows count
    as if they had none, since no prediction could match. ``segments`` has those with rows, by name.
    ``uncalibrated`` names the versions without a calibration, whose confidences count as they are.
    """

    classes: tuple[str, ...]
    accuracy_threshold: float
    overall: Accuracy
    versions: dict[str, Accuracy]
    segments: dict[str, Accuracy]
    worst: Worst | None
    fairness: tuple[FairnessReport, ...]
    confusion: tuple[tuple[int, ...], ...]
    scores: tuple[ClassScores, ...]
    unknown_labels: dict[str, int]
    label_delay: LabelDelay | None
    uncalibrated: tuple[str, ...]

    @property
    def verdict(self) -> PerformanceVerdict:
        """Degraded only if the whole interval lies below the threshold.

        A measured accuracy just below it may be chance, and retraining answers to this verdict: so
        a model that is exactly as accurate as the threshold is accused in at most 2.5 % of windows.
        By the same reasoning it is acceptable only if the whole interval reaches the threshold.
        """
        if self.overall.interval is None:
            return PerformanceVerdict.NOT_ENOUGH_DATA
        return self._verdict(*self.overall.interval)

    @property
    def estimated_verdict(self) -> PerformanceVerdict:
        """The same by the estimate and its interval, without any label."""
        estimate = self.overall.estimate
        if estimate is None:
            return PerformanceVerdict.NOT_ENOUGH_DATA
        return self._verdict(estimate.low, estimate.high)

    def _verdict(self, low: float, high: float) -> PerformanceVerdict:
        if high < self.accuracy_threshold:
            return PerformanceVerdict.DEGRADED
        if low >= self.accuracy_threshold:
            return PerformanceVerdict.ACCEPTABLE
        return PerformanceVerdict.INCONCLUSIVE

    @property
    def summary(self) -> str:
        """The verdict as one sentence, and a second one about labels that are no classes."""
        overall = self.overall
        strange = unknown_labels_summary(self.unknown_labels) if self.unknown_labels else ""
        if overall.interval is None or overall.measured is None:
            sentence = (
                f"None of {overall.rows} rows has a label{' of the classes' if strange else ''}."
            )
            return " ".join(filter(None, [sentence, strange, self.estimate_summary]))
        low, high = overall.interval
        return (
            f"Accuracy {overall.measured:.2f} [{low:.2f}, {high:.2f}] on {overall.labelled} "
            f"labelled rows {_RELATIONS[self.verdict]} {self.accuracy_threshold:g}. {strange}"
        ).rstrip()

    @property
    def estimate_summary(self) -> str:
        """The estimated accuracy as one sentence."""
        estimate = self.overall.estimate
        if estimate is None:
            return "There are no rows to estimate the accuracy of."
        source = "uncalibrated confidences" if self.uncalibrated else "calibrated confidences"
        relation = _RELATIONS[self.estimated_verdict]
        return (
            f"The accuracy estimated from {source}, {estimate.accuracy:.2f} "
            f"[{estimate.low:.2f}, {estimate.high:.2f}], {relation} {self.accuracy_threshold:g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible data."""
        return {
            **asdict(self),
            "verdict": str(self.verdict),
            "estimated_verdict": str(self.estimated_verdict),
            "summary": self.summary,
            "coverage": self.overall.coverage,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping for the window and one a model version, for a table."""
        accuracies = {"all": self.overall, **self.versions}
        return [{MODEL_VERSION: name, **_row(accuracy)} for name, accuracy in accuracies.items()]

    def segment_rows(self) -> list[dict[str, Any]]:
        """One flat mapping a segment, for a table."""
        return [{"segment": name, **_row(accuracy)} for name, accuracy in self.segments.items()]


def unknown_labels_summary(unknown: Mapping[str, int]) -> str:
    """Labels that are none of the classes, counted by label, as one sentence."""
    named = ", ".join(
        f"{_brief(label)!r} ({rows})" for label, rows in list(unknown.items())[:LABELS_NAMED]
    )
    return (
        f"{sum(unknown.values())} labels are none of the classes and count for nothing: {named}; "
        "write labels as the data spec spells its classes."
    )


def _brief(label: str) -> str:
    return label if len(label) <= LONGEST_VALUE else f"{label[:LONGEST_VALUE]}…"


def performance(
    chunks: "Iterable[pd.DataFrame]",
    labels: "Iterable[pd.DataFrame]",
    spec: DataSpec,
    calibrations: Mapping[str, ConfidenceCalibration],
    accuracy_threshold: float = DEFAULT_ACCURACY_THRESHOLD,
    tolerated_difference: float = TOLERATED_DIFFERENCE,
) -> PerformanceReport:
    """Judge a window's predictions by its labels.

    The window comes as `chunks` of its rows (`snapshot.captures_table`), each seen once,
    with at least `confusion.columns_read`; the labels as chunks of what a store reads, at least
    one, with at least `confusion.LABELS_READ`. `calibrations` are those of the versions that
    answered, by version: the accuracy is estimated from them (see `cbpe`) over every row, labelled
    or not.
    The interval of the measured accuracy is Wilson's.
    """
    counts = ConfusionCounts(spec, LabelSource(labels, spec.target.classes))
    for chunk in chunks:
        counts.add(chunk)
    judged = Accuracies(counts, calibrations)
    columns = judged.columns()
    delays = counts.delays
    return PerformanceReport(
        classes=spec.target.classes,
        accuracy_threshold=accuracy_threshold,
        overall=judged.accuracy(0),
        versions=judged.versions(),
        segments={
            counts.segments.names[place]: judged.accuracy(place)
            for places in judged.present.values()
            for place in places
        },
        worst=worst_segment(columns),
        fairness=fairness(columns, spec.protected, tolerated_difference),
        confusion=tuple(tuple(int(count) for count in row) for row in counts.confusion),
        scores=class_scores(counts.confusion, spec.target.classes),
        unknown_labels=dict(counts.unknown_labels.most_common()),
        label_delay=LabelDelay(float(np.median(delays)), float(delays.max()))
        if delays.size
        else None,
        uncalibrated=tuple(
            version
            for version in sorted(counts.versions)
            if not calibrations.get(version, IDENTITY_CALIBRATION).is_learnt
        ),
    )


def _row(accuracy: Accuracy) -> dict[str, Any]:
    estimate = accuracy.estimate
    low, high = accuracy.interval or (None, None)
    return {
        "rows": accuracy.rows,
        "labelled": accuracy.labelled,
        "estimated_accuracy": estimate.accuracy if estimate else None,
        "estimated_low": estimate.low if estimate else None,
        "estimated_high": estimate.high if estimate else None,
        "measured_accuracy": accuracy.measured,
        "interval_low": low,
        "interval_high": high,
    }


def _accuracy(expected: ExpectedCorrect, place: int, correct: int) -> Accuracy:
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


def _group(name: str, expected: ExpectedCorrect, place: int, correct: int) -> Group:
    labelled = int(expected.rows[place + len(expected.rows) // 2])
    return Group(name, int(expected.rows[place]), labelled, correct, expected.drawn[:, place])
