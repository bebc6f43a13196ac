"""Paired evaluation by replay: champion and challenger on the same captured inputs.

Each captured request was answered by one of the two versions. The other one predicts offline on the
very inputs, which gives the same bits as if it had answered: so every captured row makes a pair,
without a shadow and on any kind of endpoint.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.calibration import confidence_bins, load_calibration
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.promotion.evidence import PairedEvidence

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.monitoring.confusion import LabelSource

DECIMALS = 2
"""Decimals to which differences of confidence are rounded."""

Names = npt.NDArray[np.object_]
Chances = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted classes, and the calibrated chances that they are right; shape (rows,) each."""

    classes: Names
    chances: Chances


class ReplayedVersion:
    """Version `number`, loaded from its version folder, to predict on captured inputs.

    Raises:
        UserError: the folder holds no intact model or calibration.
    """

    def __init__(self, number: str, folder: Path) -> None:
        self.number = number
        self._model = CompiledModel.load(folder)
        self._classes: Names = np.array(self._model.spec.target.classes, dtype=object)
        self._chances = load_calibration(folder).chances().mean(axis=0)

    def predict(self, inputs: Sequence[Mapping[str, InputValue]]) -> Predictions:
        """Predict on `inputs`, as the endpoint would.

        Raises:
            UserError: they lack a column of this version.
        """
        try:
            # Sums of extreme inputs may overflow, here as in the endpoint.
            with np.errstate(all="ignore"):
                probabilities = self._model.probabilities(inputs)
        except KeyError as error:
            raise UserError(
                f"Version {self.number} needs the column {error}, which captured requests lack, so "
                "that they cannot be replayed; train a challenger on the columns that are sent."
            ) from None
        classes = self._classes[probabilities.argmax(axis=1)]
        return Predictions(classes, self._calibrated(probabilities.max(axis=1)))

    def answered(self, captures: "pd.DataFrame") -> Predictions:
        """The predictions in `captures`, which this version answered."""
        confidence = captures["confidence"].to_numpy(dtype=np.float64)
        return Predictions(
            captures["prediction"].to_numpy(dtype=object), self._calibrated(confidence)
        )

    def _calibrated(self, confidence: Chances) -> Chances:
        return np.asarray(self._chances[confidence_bins(confidence)])


def replay(
    store: CaptureStore,
    champion: ReplayedVersion,
    challenger: ReplayedVersion,
    since: datetime,
    until: datetime,
    classes: Sequence[str],
) -> PairedEvidence:
    """The evidence in the captures from `since` to the window of `until` (timezone-aware).

    The challenger replays what `champion` answered as the primary, the champion what `challenger`
    answered as the canary. Labels that are none of `classes` do not count. Memory holds one chunk
    of captures and a few numbers for each label of a window.
    """
    from mlschool_dagster.capture.records import labels_frame
    from mlschool_dagster.monitoring.confusion import LabelSource

    total: Counter[str] = Counter()
    confidence: Counter[float] = Counter()
    for window in _windows(since, until):
        labels = LabelSource(chain([labels_frame(())], store.stream_labels(window)), classes)
        for captures in store.stream(window):
            fresh = captures[captures["captured_at"] >= since]
            for role, answering, other in (
                (Role.PRIMARY, champion, challenger),
                (Role.CANARY, challenger, champion),
            ):
                own = (fresh["role"] == role) & (fresh["model_version"] == answering.number)
                rows = fresh[own].reset_index(drop=True)
                if rows.empty:
                    continue
                pair = {
                    answering: answering.answered(rows),
                    other: other.predict(rows["inputs"].tolist()),
                }
                total.update(_counts(pair[champion], pair[challenger], rows, labels, classes))
                total["canary_rows"] += len(rows) if role is Role.CANARY else 0
                differences = pair[challenger].chances - pair[champion].chances
                confidence.update(differences.round(DECIMALS).tolist())
    return PairedEvidence(**total, confidence=dict(confidence))


def replay_token(store: CaptureStore, since: datetime, until: datetime) -> str:
    """A token of what `replay` would read; it changes when captures or labels arrive."""
    tokens = [
        f"{window.key} {store.captures_token(window)} {store.labels_token(window)}"
        for window in _windows(since, until)
    ]
    return sha256("\n".join(tokens).encode()).hexdigest()


def _windows(since: datetime, until: datetime) -> Iterator[Window]:
    window = Window.of(since)
    while window.start <= until:
        yield window
        window = Window(window.end)


def _counts(
    champion: Predictions,
    challenger: Predictions,
    rows: "pd.DataFrame",
    source: "LabelSource",
    classes: Sequence[str],
) -> dict[str, int]:
    labels = source.of(rows).labels
    labelled = labels >= 0
    truth = np.array(classes, dtype=object)[np.maximum(labels, 0)]
    before = labelled & (champion.classes == truth)
    after = labelled & (challenger.classes == truth)
    return {
        "pairs": len(rows),
        "agreeing": int((champion.classes == challenger.classes).sum()),
        "labelled": int(labelled.sum()),
        "gained": int((after & ~before).sum()),
        "lost": int((before & ~after).sum()),
    }
