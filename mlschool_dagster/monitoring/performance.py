"""Performance: how often the model is right, estimated at once and measured when labels arrive."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mlschool_dagster.modeling.scores import ClassScores, class_scores, confusion_counts
from mlschool_dagster.modeling.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.monitoring.config import DEFAULT_ACCURACY_THRESHOLD
from mlschool_dagster.monitoring.statistics import wilson_interval

if TYPE_CHECKING:
    import pandas as pd


class PerformanceVerdict(StrEnum):
    """What the labels say of the model."""

    DEGRADED = "degraded"
    ACCEPTABLE = "acceptable"
    INCONCLUSIVE = "inconclusive"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of some rows.

    ``estimated`` is None without rows; ``measured`` and its 95 % interval rest on the labelled rows
    alone, None without any.
    """

    rows: int
    labelled: int
    correct: int
    estimated: float | None
    measured: float | None
    interval: tuple[float, float] | None

    @property
    def coverage(self) -> float:
        """The labelled share of the rows; 0 without rows."""
        return self.labelled / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class LabelDelay:
    """Hours from prediction to label, over the labelled rows."""

    median_hours: float
    maximum_hours: float


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """How a window's predictions fared.

    ``confusion[i][j]`` counts rows whose label is the i-th and whose prediction the j-th of
    ``classes``; ``foreign_labels`` counts labels that are none of them: no prediction can match
    one, so they count as errors.
    """

    classes: tuple[str, ...]
    accuracy_threshold: float
    overall: Accuracy
    versions: dict[str, Accuracy]
    confusion: tuple[tuple[int, ...], ...]
    scores: tuple[ClassScores, ...]
    foreign_labels: int
    label_delay: LabelDelay | None

    @property
    def verdict(self) -> PerformanceVerdict:
        """Degraded only if the whole interval lies below the threshold.

        A measured accuracy just below it may be chance, and retraining answers to this verdict: so
        a model that is exactly as accurate as the threshold is accused in at most 2.5 % of windows.
        By the same reasoning it is acceptable only if the whole interval reaches the threshold.
        """
        if self.overall.interval is None:
            return PerformanceVerdict.NOT_ENOUGH_DATA
        low, high = self.overall.interval
        if high < self.accuracy_threshold:
            return PerformanceVerdict.DEGRADED
        if low >= self.accuracy_threshold:
            return PerformanceVerdict.ACCEPTABLE
        return PerformanceVerdict.INCONCLUSIVE

    @property
    def summary(self) -> str:
        """The verdict as one sentence."""
        overall = self.overall
        if overall.interval is None or overall.measured is None:
            guess = f"; the estimate is {overall.estimated:.2f}" if overall.rows else ""
            return f"None of {overall.rows} rows has a label{guess}."
        relation = {
            PerformanceVerdict.DEGRADED: "lies below",
            PerformanceVerdict.ACCEPTABLE: "reaches",
            PerformanceVerdict.INCONCLUSIVE: "cannot yet be told from",
        }[self.verdict]
        low, high = overall.interval
        return (
            f"Accuracy {overall.measured:.2f} [{low:.2f}, {high:.2f}] on {overall.labelled} "
            f"labelled rows {relation} {self.accuracy_threshold:g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible data."""
        return {
            **asdict(self),
            "verdict": str(self.verdict),
            "summary": self.summary,
            "coverage": self.overall.coverage,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping for the window and one a model version, for a table."""
        return [_row("all", self.overall)] + [
            _row(version, accuracy) for version, accuracy in self.versions.items()
        ]


def performance(
    current: "pd.DataFrame",
    labels: "pd.DataFrame",
    spec: DataSpec,
    accuracy_threshold: float = DEFAULT_ACCURACY_THRESHOLD,
) -> PerformanceReport:
    """Judges a window's predictions (`frames.current_frame`) by its labels (as a store reads them).

    The estimated accuracy is the mean confidence over every row, labelled or not (average
    confidence, as in Garg et al. 2022). It is right as far as the confidences are calibrated on
    these rows (Guo et al. 2017), so it sees a shift towards inputs that the model finds hard, and
    is blind to a change of what the inputs mean. The interval of the measured accuracy is Wilson's.
    """
    joined = with_labels(current, labels)
    labelled = joined[joined["label"].notna()]
    confusion = confusion_counts(labelled["label"], labelled[PREDICTION], spec.target.classes)
    return PerformanceReport(
        classes=spec.target.classes,
        accuracy_threshold=accuracy_threshold,
        overall=_accuracy(joined),
        versions={
            str(version): _accuracy(rows) for version, rows in joined.groupby("model_version")
        },
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        scores=class_scores(confusion, spec.target.classes),
        foreign_labels=int((~labelled["label"].isin(spec.target.classes)).sum()),
        label_delay=_delay(labelled),
    )


def with_labels(current: "pd.DataFrame", labels: "pd.DataFrame") -> "pd.DataFrame":
    """The answers of `current` with their newest ``label`` and ``labelled_at``, missing if none."""
    answers = current[["event_id", "captured_at", "model_version", PREDICTION, CONFIDENCE]]
    newest = labels.sort_values("labelled_at", kind="stable").drop_duplicates(
        "event_id", keep="last"
    )
    told = newest[["event_id", "label", "labelled_at"]].astype({"event_id": object})
    return answers.astype({"event_id": object}).merge(told, on="event_id", how="left")


def _accuracy(rows: "pd.DataFrame") -> Accuracy:
    labelled = int(rows["label"].notna().sum())
    correct = int((rows["label"] == rows[PREDICTION]).sum())
    return Accuracy(
        rows=len(rows),
        labelled=labelled,
        correct=correct,
        estimated=float(rows[CONFIDENCE].mean()) if len(rows) else None,
        measured=correct / labelled if labelled else None,
        interval=wilson_interval(correct, labelled) if labelled else None,
    )


def _delay(labelled: "pd.DataFrame") -> LabelDelay | None:
    if labelled.empty:
        return None
    hours = (labelled["labelled_at"] - labelled["captured_at"]).dt.total_seconds() / 3600
    return LabelDelay(float(hours.median()), float(hours.max()))


def _row(version: str, accuracy: Accuracy) -> dict[str, Any]:
    low, high = accuracy.interval or (None, None)
    return {
        "model_version": version,
        "rows": accuracy.rows,
        "labelled": accuracy.labelled,
        "estimated_accuracy": accuracy.estimated,
        "measured_accuracy": accuracy.measured,
        "interval_low": low,
        "interval_high": high,
    }
