"""How well each class is recognised, counted from pairs of true and predicted class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
