"""Confusion matrix and correct counts of a window, by version, segment and confidence bin.

Predictions are counted chunk by chunk against their labels. Memory does not grow with the rows: a
table of fixed size a version, and three numbers a label.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import CONFIDENCE, MODEL_VERSION, PREDICTION, ROLE, DataSpec
from mlschool_dagster.modeling.calibration import BINS, confidence_bins
from mlschool_dagster.monitoring.profiles import codes
from mlschool_dagster.monitoring.segments import Segments
from mlschool_dagster.monitoring.snapshot import event_hashes

if TYPE_CHECKING:
    import pandas as pd

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


UNLABELLED = -1
"""Code of a missing label. Lower numbers stand for labels that are none of the classes."""

UNKNOWN_COUNTED = 100
"""Unknown labels are counted one by one up to this many; all others together."""

REST = "(others)"
"""The name under which all others are counted."""

LABELS_READ = ["event_id", "label", "labelled_at"]
"""The columns of labels that `LabelSource` reads."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelLookup:
    """The labels of some predictions.

    ``labels`` has the position of each label among the classes, or a number up to `UNLABELLED`;
    ``delays`` the hours from prediction to label, of those whose label is a class.
    """

    labels: Counts
    delays: Floats


class LabelSource:
    """The newest label of each event, from at least one frame of labels (`labels_table`).

    ``unknown`` are labels that are none of the classes, in the order of their numbers downwards
    from `UNLABELLED`; beyond `UNKNOWN_COUNTED` they share one.
    """

    def __init__(self, labels: "Iterable[pd.DataFrame]", classes: Sequence[str]) -> None:
        import pandas as pd

        self.unknown: list[str] = []
        parts = (
            (
                event_hashes(frame["event_id"]),
                self._numbers(frame["label"], classes),
                _instants(frame["labelled_at"]),
            )
            for frame in labels
        )
        events, numbers, labelled_at = map(np.concatenate, zip(*parts, strict=True))
        self._events = pd.Index(events)
        if not self._events.is_unique:
            order = np.argsort(labelled_at, kind="stable")
            newest = order[~self._events[order].duplicated(keep="last")]
            self._events = self._events[newest]
            numbers, labelled_at = numbers[newest], labelled_at[newest]
        # Where an event has no label its place is -1: the last one.
        self._labels = np.append(numbers, UNLABELLED)
        self._labelled_at = labelled_at

    def _numbers(self, labels: "pd.Series[Any]", classes: Sequence[str]) -> Counts:
        """The number of each label: its position among the classes, or one below `UNLABELLED`."""
        import pandas as pd

        numbers = codes(labels, classes)
        strange = numbers < 0
        places, names = pd.factorize(labels[strange].astype(object).map(str))
        for name in names:
            if name not in self.unknown and len(self.unknown) <= UNKNOWN_COUNTED:
                self.unknown.append(name if len(self.unknown) < UNKNOWN_COUNTED else REST)
        known = {name: UNLABELLED - 1 - place for place, name in enumerate(self.unknown)}
        own = [known.get(name, UNLABELLED - 1 - UNKNOWN_COUNTED) for name in names]
        numbers[strange] = np.array(own, dtype=np.int64)[places]
        return numbers

    def of(self, answers: "pd.DataFrame") -> LabelLookup:
        """The labels of `answers` (``event_id``, ``captured_at``)."""
        import pandas as pd

        places = self._events.get_indexer(pd.Index(event_hashes(answers["event_id"])))
        labels = self._labels[places]
        known = labels >= 0
        waited = self._labelled_at[places[known]] - _instants(answers["captured_at"])[known]
        return LabelLookup(labels, (waited / np.timedelta64(1, "h")).astype(np.float32))


class VersionCounts:
    """Counts of one version's rows by segment.

    ``rows`` and ``labelled`` by confidence bin too, shape (segments, bins); ``correct`` of the
    labelled ones, shape (segments,).
    """

    def __init__(self, segments: int) -> None:
        self.rows: Counts = np.zeros((segments, BINS), dtype=np.int64)
        self.labelled: Counts = np.zeros((segments, BINS), dtype=np.int64)
        self.correct: Counts = np.zeros(segments, dtype=np.int64)

    def add(
        self,
        places: npt.NDArray[np.intp],
        bins: npt.NDArray[np.intp],
        outcomes: npt.NDArray[np.intp],
    ) -> None:
        """Count rows by the segments they are in, shape (columns, rows), by bin and outcome.

        An outcome is 0 without a label, 1 for a wrong prediction and 2 for a right one.
        """
        cells = (places * BINS + bins) * 3 + outcomes
        counts = np.bincount(cells.ravel(), minlength=self.rows.size * 3)
        counts = counts.reshape(*self.rows.shape, 3)
        self.rows += counts.sum(axis=2)
        self.labelled += counts[:, :, 1:].sum(axis=2)
        self.correct += counts[:, :, 2].sum(axis=1)

    def pooled(self, places: npt.NDArray[np.intp]) -> "VersionCounts":
        """The counts with each segment counted at its place among `places`."""
        pooled = VersionCounts(len(places))
        np.add.at(pooled.rows, places, self.rows)
        np.add.at(pooled.labelled, places, self.labelled)
        np.add.at(pooled.correct, places, self.correct)
        return pooled


def columns_read(spec: DataSpec) -> list[str]:
    """The columns of a window's chunks that `ConfusionCounts` reads."""
    segmented = [ROLE, *(column.name for column in spec.categorical)]
    return ["event_id", "captured_at", MODEL_VERSION, *segmented, PREDICTION, CONFIDENCE]


class ConfusionCounts:
    """Counts of a window's predictions against their labels.

    ``confusion`` counts labelled rows by (label, prediction) in the order of the spec's classes;
    ``unknown_labels`` those whose label is none of them, by label. These are no evidence of
    anything, since no prediction could match them: such a row counts as if it had no label.
    """

    def __init__(self, spec: DataSpec, labels: LabelSource) -> None:
        self.segments = Segments(spec)
        self.versions: dict[str, VersionCounts] = {}
        self.unknown_labels: Counter[str] = Counter()
        self._classes = spec.target.classes
        self.confusion: Counts = np.zeros((len(self._classes),) * 2, dtype=np.int64)
        self._labels = labels
        self._delays: list[Floats] = []

    def add(self, answers: "pd.DataFrame") -> None:
        """Count a chunk of the window (`snapshot.captures_table`)."""
        import pandas as pd

        lookup = self._labels.of(answers)
        labelled = lookup.labels >= 0
        predicted = codes(answers[PREDICTION], self._classes)
        known = labelled & (predicted >= 0)
        right = known & (lookup.labels == predicted)
        places = self.segments.positions(answers)
        bins = confidence_bins(answers[CONFIDENCE].to_numpy(dtype=float))
        outcomes = labelled.astype(np.intp) + right
        versions = pd.Categorical(answers[MODEL_VERSION])
        for code, version in enumerate(versions.categories):
            its = versions.codes == code
            if its.any():
                counts = self.versions.setdefault(str(version), VersionCounts(len(self.segments)))
                counts.add(places[:, its], bins[its], outcomes[its])
        np.add.at(self.confusion, (lookup.labels[known], predicted[known]), 1)
        for number, rows in zip(
            *np.unique(lookup.labels[lookup.labels < UNLABELLED], return_counts=True), strict=True
        ):
            self.unknown_labels[self._labels.unknown[UNLABELLED - 1 - number]] += int(rows)
        self._delays.append(lookup.delays)

    @property
    def delays(self) -> Floats:
        """Hours from answer to label, one per labelled row."""
        return np.concatenate(self._delays) if self._delays else np.zeros(0, dtype=np.float32)


def _instants(times: "pd.Series[Any]") -> "npt.NDArray[np.datetime64]":
    return np.asarray(times.dt.tz_convert(None).to_numpy())
