"""Predictions counted chunk by chunk: by version, segment and confidence, beside their labels.

Whatever the number of rows, what is kept of them is a table of fixed size for each version; of the
labels, which are read whole, a lookup by event id.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.modeling.calibration import BINS, confidence_bins
from mlschool_dagster.modeling.scores import confusion_counts
from mlschool_dagster.modeling.spec import CONFIDENCE, MODEL_VERSION, PREDICTION, ROLE, DataSpec
from mlschool_dagster.monitoring.segments import Segments

if TYPE_CHECKING:
    import pandas as pd

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What labels say of some answers.

    ``labels`` has each one's label, None without one; ``delays`` the hours that the labelled ones
    waited for it.
    """

    labels: npt.NDArray[np.object_]
    delays: Floats


class Truth:
    """The newest label of each event, from labels as a store reads them."""

    def __init__(self, labels: "pd.DataFrame") -> None:
        import pandas as pd

        if not labels["event_id"].is_unique:
            newest_last = labels.sort_values("labelled_at", kind="stable")
            labels = newest_last.drop_duplicates("event_id", keep="last")
        self._events = pd.Index(labels["event_id"], dtype=object)
        # Where an event has no label its place is -1, which is None.
        self._labels = np.full(len(labels) + 1, None, dtype=object)
        self._labels[:-1] = labels["label"]
        self._told_at = _instants(labels["labelled_at"])

    def of(self, answers: "pd.DataFrame") -> Told:
        """What is known of `answers` (``event_id``, ``captured_at``)."""
        import pandas as pd

        places = self._events.get_indexer(pd.Index(answers["event_id"], dtype=object))
        known = places >= 0
        waited = self._told_at[places[known]] - _instants(answers["captured_at"])[known]
        return Told(self._labels[places], (waited / np.timedelta64(1, "h")).astype(np.float32))


class VersionTally:
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
        labelled: npt.NDArray[np.bool_],
        right: npt.NDArray[np.bool_],
    ) -> None:
        """Count rows by the segments they are in, shape (columns, rows), and by their bins."""
        cells = places * BINS + bins
        self.rows += _counted(cells, self.rows.size).reshape(self.rows.shape)
        self.labelled += _counted(cells[:, labelled], self.rows.size).reshape(self.rows.shape)
        self.correct += _counted(places[:, right], self.correct.size)

    def pooled(self, places: npt.NDArray[np.intp]) -> "VersionTally":
        """The counts with each segment counted at its place among `places`."""
        pooled = VersionTally(len(places))
        np.add.at(pooled.rows, places, self.rows)
        np.add.at(pooled.labelled, places, self.labelled)
        np.add.at(pooled.correct, places, self.correct)
        return pooled


def columns_read(spec: DataSpec) -> list[str]:
    """The columns of a window's chunks that a tally looks at."""
    segmented = [ROLE, *(column.name for column in spec.categorical)]
    return ["event_id", "captured_at", MODEL_VERSION, *segmented, PREDICTION, CONFIDENCE]


class Tally:
    """All that a window's performance is judged by.

    ``confusion`` counts labelled rows by (label, prediction) in the order of the spec's classes;
    ``foreign_labels`` those whose label is none of them, which no prediction can match.
    """

    def __init__(self, spec: DataSpec, truth: Truth) -> None:
        self.segments = Segments(spec)
        self.versions: dict[str, VersionTally] = {}
        self.foreign_labels = 0
        self._classes = spec.target.classes
        self.confusion: Counts = np.zeros((len(self._classes),) * 2, dtype=np.int64)
        self._truth = truth
        self._delays: list[Floats] = []

    def add(self, answers: "pd.DataFrame") -> None:
        """Count a chunk of the window (`frames.current_frame`)."""
        import pandas as pd

        told = self._truth.of(answers)
        predictions = answers[PREDICTION].to_numpy(dtype=object)
        labelled = np.asarray(pd.notna(told.labels))
        right = labelled & (told.labels == predictions)
        places = self.segments.positions(answers)
        bins = confidence_bins(answers[CONFIDENCE].to_numpy(dtype=float))
        of_version, versions = pd.factorize(answers[MODEL_VERSION].astype(str))
        for code, version in enumerate(versions):
            tally = self.versions.setdefault(str(version), VersionTally(len(self.segments)))
            its = of_version == code
            tally.add(places[:, its], bins[its], labelled[its], right[its])
        confusion = confusion_counts(
            pd.Series(told.labels[labelled]), pd.Series(predictions[labelled]), self._classes
        )
        self.confusion += confusion
        known = pd.Series(told.labels[labelled]).isin(self._classes)
        self.foreign_labels += int((~known).sum())
        self._delays.append(told.delays)

    @property
    def delays(self) -> Floats:
        """Hours from answer to label, one per labelled row."""
        return np.concatenate(self._delays) if self._delays else np.zeros(0, dtype=np.float32)


def _counted(cells: npt.NDArray[np.intp], size: int) -> Counts:
    return np.bincount(cells.ravel(), minlength=size)


def _instants(times: "pd.Series[Any]") -> "npt.NDArray[np.datetime64]":
    return np.asarray(times.dt.tz_convert(None).to_numpy())
