"""Performance: how often the model is right, estimated at once and measured when labels arrive.

Of the window as a whole, of each version and of each segment, the worst of which is named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import MODEL_VERSION, DataSpec
from mlschool_dagster.modeling.calibration import IDENTITY_CALIBRATION, ConfidenceCalibration
from mlschool_dagster.modeling.evaluation import ClassScores, class_scores
from mlschool_dagster.monitoring.accuracies import Accuracies, Accuracy
from mlschool_dagster.monitoring.config import DEFAULT_ACCURACY_THRESHOLD, TOLERATED_DIFFERENCE
from mlschool_dagster.monitoring.fairness import FairnessReport, fairness
from mlschool_dagster.monitoring.quality import LONGEST_VALUE
from mlschool_dagster.monitoring.segments import Worst, worst_segment
from mlschool_dagster.monitoring.tally import Tally, Truth

if TYPE_CHECKING:
    import pandas as pd


LABELS_NAMED = 5
"""Most labels that a sentence names."""


class PerformanceVerdict(StrEnum):
    """What the labels say of the model."""

    DEGRADED = "degraded"
    ACCEPTABLE = "acceptable"
    INCONCLUSIVE = "inconclusive"
    NOT_ENOUGH_DATA = "not enough data"


_RELATIONS = {
    PerformanceVerdict.DEGRADED: "lies below",
    PerformanceVerdict.ACCEPTABLE: "reaches",
    PerformanceVerdict.INCONCLUSIVE: "cannot yet be told from",
}


@dataclass(frozen=True, slots=True)
class LabelDelay:
    """Hours from prediction to label, over the labelled rows."""

    median_hours: float
    maximum_hours: float


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """How a window's predictions fared.

    ``confusion[i][j]`` counts rows whose label is the i-th and whose prediction the j-th of
    ``classes``; ``unknown_labels`` counts labels that are none of them by label: these rows count
    as if they had none, since no prediction could match. ``segments`` has those with rows, by name.
    ``uncalibrated`` names the versions whose confidences were taken at their word, for want of a
    calibration.
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
            told = f"None of {overall.rows} rows has a label{' of the classes' if strange else ''}."
            return " ".join(filter(None, [told, strange, self.estimate_summary]))
        low, high = overall.interval
        return (
            f"Accuracy {overall.measured:.2f} [{low:.2f}, {high:.2f}] on {overall.labelled} "
            f"labelled rows {_RELATIONS[self.verdict]} {self.accuracy_threshold:g}. {strange}"
        ).rstrip()

    @property
    def estimate_summary(self) -> str:
        """What is expected without labels, as one sentence."""
        estimate = self.overall.estimate
        if estimate is None:
            return "There is nothing to estimate from."
        source = (
            "confidences taken at their word" if self.uncalibrated else "calibrated confidences"
        )
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
        return [{MODEL_VERSION: name, **_row(found)} for name, found in accuracies.items()]

    def segment_rows(self) -> list[dict[str, Any]]:
        """One flat mapping a segment, for a table."""
        return [{"segment": name, **_row(found)} for name, found in self.segments.items()]


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
    """Judges a window's predictions by its labels.

    The window comes as `chunks` of its rows (`frames.current_frame`), each of which is seen once,
    with at least `tally.columns_read`; the labels as chunks of what a store reads, at least one,
    with at least `tally.LABELS_READ`. `calibrations` are those of the versions that answered, by
    version: the accuracy is estimated from them (see `estimation`) over every row, labelled or not.
    The interval of the measured accuracy is Wilson's.
    """
    tally = Tally(spec, Truth(labels, spec.target.classes))
    for chunk in chunks:
        tally.add(chunk)
    judged = Accuracies(tally, calibrations)
    columns = judged.columns()
    delays = tally.delays
    return PerformanceReport(
        classes=spec.target.classes,
        accuracy_threshold=accuracy_threshold,
        overall=judged.accuracy(0),
        versions=judged.versions(),
        segments={
            tally.segments.names[place]: judged.accuracy(place)
            for places in judged.present.values()
            for place in places
        },
        worst=worst_segment(columns),
        fairness=fairness(columns, spec.protected, tolerated_difference),
        confusion=tuple(tuple(int(count) for count in row) for row in tally.confusion),
        scores=class_scores(tally.confusion, spec.target.classes),
        unknown_labels=dict(tally.unknown_labels.most_common()),
        label_delay=LabelDelay(float(np.median(delays)), float(delays.max()))
        if delays.size
        else None,
        uncalibrated=tuple(
            version
            for version in sorted(tally.versions)
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
