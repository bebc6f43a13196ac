"""Predictions counted chunk by chunk: by version, segment and confidence, beside their labels.

Whatever the number of rows, what is kept of them is a table of fixed size for each version; of the
labels, which come in chunks too, three numbers each.
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
"""What stands for no label. Lower numbers stand for labels that are none of the classes."""

UNKNOWN_COUNTED = 100
"""Labels that are none of the classes are told apart up to this many; the others are one."""

REST = "(others)"
"""What these others are called."""

LABELS_READ = ["event_id", "label", "labelled_at"]
"""The columns of labels that a tally looks at."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelLookup:
    """What labels say of some answers.

    ``labels`` has the position of each one's label among the classes, or a number up to
    `UNLABELLED`; ``delays`` the hours that those with a label of the classes waited for it.
    """

    labels: Counts
    delays: Floats


class LabelSource:
    """The newest label of each event, from frames of labels as a store reads them, at least one.

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
        events, found, told_at = map(np.concatenate, zip(*parts, strict=True))
        self._events = pd.Index(events)
        if not self._events.is_unique:
            order = np.argsort(told_at, kind="stable")
            newest = order[~self._events[order].duplicated(keep="last")]
            self._events, found, told_at = self._events[newest], found[newest], told_at[newest]
        # Where an event has no label its place is -1: the last one.
        self._labels = np.append(found, UNLABELLED)
        self._told_at = told_at

    def _numbers(self, labels: "pd.Series[Any]", classes: Sequence[str]) -> Counts:
        """What stands for each label."""
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
        """What is known of `answers` (``event_id``, ``captured_at``)."""
        import pandas as pd

        places = self._events.get_indexer(pd.Index(event_hashes(answers["event_id"])))
        labels = self._labels[places]
        known = labels >= 0
        waited = self._told_at[places[known]] - _instants(answers["captured_at"])[known]
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
    """The columns of a window's chunks that a tally looks at."""
    segmented = [ROLE, *(column.name for column in spec.categorical)]
    return ["event_id", "captured_at", MODEL_VERSION, *segmented, PREDICTION, CONFIDENCE]


class ConfusionCounts:
    """All that a window's performance is judged by.

    ``confusion`` counts labelled rows by (label, prediction) in the order of the spec's classes;
    ``unknown_labels`` those whose label is none of them, by label. These are no evidence of
    anything, since no prediction could match them: such a row counts as if it had no label.
    """

    def __init__(self, spec: DataSpec, truth: LabelSource) -> None:
        self.segments = Segments(spec)
        self.versions: dict[str, VersionCounts] = {}
        self.unknown_labels: Counter[str] = Counter()
        self._classes = spec.target.classes
        self.confusion: Counts = np.zeros((len(self._classes),) * 2, dtype=np.int64)
        self._truth = truth
        self._delays: list[Floats] = []

    def add(self, answers: "pd.DataFrame") -> None:
        """Count a chunk of the window (`snapshot.captures_table`)."""
        import pandas as pd

        told = self._truth.of(answers)
        labelled = told.labels >= 0
        predicted = codes(answers[PREDICTION], self._classes)
        known = labelled & (predicted >= 0)
        right = known & (told.labels == predicted)
        places = self.segments.positions(answers)
        bins = confidence_bins(answers[CONFIDENCE].to_numpy(dtype=float))
        outcomes = labelled.astype(np.intp) + right
        versions = pd.Categorical(answers[MODEL_VERSION])
        for code, version in enumerate(versions.categories):
            its = versions.codes == code
            if its.any():
                counts = self.versions.setdefault(str(version), VersionCounts(len(self.segments)))
                counts.add(places[:, its], bins[its], outcomes[its])
        np.add.at(self.confusion, (told.labels[known], predicted[known]), 1)
        for number, rows in zip(
            *np.unique(told.labels[told.labels < UNLABELLED], return_counts=True), strict=True
        ):
            self.unknown_labels[self._truth.unknown[UNLABELLED - 1 - number]] += int(rows)
        self._delays.append(told.delays)

    @property
    def delays(self) -> Floats:
        """Hours from answer to label, one per labelled row."""
        return np.concatenate(self._delays) if self._delays else np.zeros(0, dtype=np.float32)


def _instants(times: "pd.Series[Any]") -> "npt.NDArray[np.datetime64]":
    return np.asarray(times.dt.tz_convert(None).to_numpy())
