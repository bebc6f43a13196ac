"""Evaluation of out-of-fold predictions: accuracy, confusion, scores per class, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec, probability_column
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.training import TrainingResult

if TYPE_CHECKING:
    import pandas as pd

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well one class is recognised; a score is None where it would divide by zero."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def confusion_counts(
    truth: "pd.Series[Any]", predicted: "pd.Series[Any]", classes: Sequence[str]
) -> Counts:
    """Rows by (true class, predicted class) in the order of `classes`, shape (classes, classes).

    Rows in which either is none of the classes are left out.
    """
    import pandas as pd

    rows = pd.Categorical(truth, categories=list(classes)).codes.astype(np.int64)
    columns = pd.Categorical(predicted, categories=list(classes)).codes.astype(np.int64)
    known = (rows >= 0) & (columns >= 0)
    cells = np.bincount(rows[known] * len(classes) + columns[known], minlength=len(classes) ** 2)
    return cells.reshape(len(classes), len(classes))


def class_scores(confusion: Counts, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    """Precision, recall, F1 and support of each class, from `confusion_counts`."""
    return tuple(_scores(confusion, position, label) for position, label in enumerate(classes))


def _scores(confusion: Counts, position: int, label: str) -> ClassScores:
    hits = int(confusion[position, position])
    predicted, support = int(confusion[:, position].sum()), int(confusion[position].sum())
    return ClassScores(
        label=label,
        precision=hits / predicted if predicted else None,
        recall=hits / support if support else None,
        f1=2 * hits / (predicted + support) if predicted + support else None,
        support=support,
    )


CALIBRATION_BINS = 10
SAMPLED_ROWS = 1000


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often predictions of a given confidence are right.

    The bins are of equal width over [0, 1]; each array has shape (bins,). ``confidence`` and
    ``accuracy`` are means over the bin's rows, NaN where ``count`` is 0. ``expected_error`` is the
    expected calibration error, the mean of |accuracy - confidence| weighted by count (Guo et al.
    2017, "On calibration of modern neural networks", eq. 3).
    """

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]
    expected_error: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The cross-validated quality of a model.

    ``fold_accuracies`` has shape (folds,); ``accuracy_mean`` and ``accuracy_std`` (population) are
    taken over it. ``confusion`` counts rows by (true class, predicted class) in the spec's order.
    ``scores`` has one entry per class, in the same order.
    """

    fold_accuracies: npt.NDArray[np.float64]
    accuracy_mean: float
    accuracy_std: float
    confusion: npt.NDArray[np.int64]
    scores: tuple[ClassScores, ...]
    calibration: Calibration


def evaluate(result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec) -> Evaluation:
    """Compare the out-of-fold predictions of `result` with the target in `frame`."""
    import pandas as pd

    classes = np.array(spec.target.classes)
    truth = frame[spec.target.name].to_numpy()
    codes = (truth[:, None] == classes).argmax(axis=1)
    predicted = result.probabilities.argmax(axis=1)
    right = predicted == codes
    accuracies = np.array(
        [right[result.fold_of_row == fold].mean() for fold in range(result.config.folds)]
    )
    confusion = confusion_counts(
        frame[spec.target.name], pd.Series(classes[predicted]), spec.target.classes
    )
    return Evaluation(
        fold_accuracies=accuracies,
        accuracy_mean=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        confusion=confusion,
        scores=class_scores(confusion, spec.target.classes),
        calibration=calibrate(result.probabilities.max(axis=1), right),
    )


def calibrate(confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> Calibration:
    """The calibration of predictions by `confidence` in [0, 1] and whether they were `right`.

    Both have shape (rows,).
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        means, hits = (
            np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) / count
            for values in (confidence, right)
        )
    error = np.nansum(np.abs(hits - means) * count) / count.sum()
    return Calibration(means, hits, count, float(error))


def reference_frame(
    result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec
) -> "pd.DataFrame":
    """The reference of a version: its training rows with out-of-fold predictions.

    Columns: the spec's inputs, its target, the out-of-fold ``prediction`` and ``confidence``, and
    one `probability_column` per class. The index counts rows from 0.
    """
    classes = np.array(spec.target.classes, dtype=object)
    reference = input_frame(frame, spec).reset_index(drop=True)
    reference[spec.target.name] = frame[spec.target.name].to_numpy()
    reference[PREDICTION] = classes[result.probabilities.argmax(axis=1)]
    reference[CONFIDENCE] = result.probabilities.max(axis=1).astype(float)
    for position, label in enumerate(spec.target.classes):
        reference[probability_column(label)] = result.probabilities[:, position].astype(float)
    return reference


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the training data, and what the trained network answers to it."""

    inputs: dict[str, Any]
    prediction: str
    confidence: float


def samples(result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec) -> list[Sample]:
    """For each class that the network predicts, the row of which it is most confident.

    At most `SAMPLED_ROWS` rows of `frame` are searched. Complete rows go first, since they test
    every input.
    """
    step = -(-len(frame) // SAMPLED_ROWS)
    inputs = input_frame(frame, spec).iloc[::step]
    features = result.transformer.transform(inputs).astype(np.float32)
    probabilities = np.asarray(result.model.predict_on_batch(features)).astype(np.float64)
    rows = inputs.astype(object).where(inputs.notna(), None)  # type: ignore[call-overload]
    # Later keys count first.
    order = np.lexsort((-probabilities.max(axis=1), inputs.isna().any(axis=1)))
    predicted = probabilities.argmax(axis=1)
    best = {code: next(row for row in order if predicted[row] == code) for code in set(predicted)}
    return [
        Sample(rows.iloc[best[code]].to_dict(), label, float(probabilities[best[code]].max()))
        for code, label in enumerate(spec.target.classes)
        if code in best
    ]
