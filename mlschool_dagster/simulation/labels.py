"""Experts: they label captures later, and are not always right."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.clock import utc_now
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.simulation.diary import Diary

SOURCE = "simulated expert"
DEFAULT_QUALITY = 0.8
PROGRESS_EVERY = 10_000
"""Labels between two reports of progress."""


class LabelledStore(Protocol):
    """The part of a capture store that an expert uses."""

    def unlabelled(self) -> Iterator[Capture]:
        """Every capture without a label, streamed."""

    def append_labels(self, labels: Iterable[Label]) -> int:
        """Keeps `labels` in bounded batches; returns how many were written."""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """What the labels rest on.

    ``from_diary`` and ``from_predictions`` count captures by where their truth was taken from;
    ``guessed`` counts those of both that were given a random class instead.
    """

    labelled: int
    from_diary: int
    from_predictions: int
    guessed: int


def label_captures(
    store: LabelledStore,
    diary: Diary,
    spec: DataSpec,
    quality: float = DEFAULT_QUALITY,
    seed: int = 42,
    progress: Callable[[str], None] = lambda _: None,
) -> LabelSummary:
    """Labels every capture of `store` that has no label; run again, it finds nothing left to do.

    With probability `quality` the label is the truth that the `diary` remembers, else a class drawn
    uniformly, which may happen to be the truth. Of a capture that is not in the diary, because it
    was not simulated, nobody knows the truth: the prediction stands in for it, so its measured
    accuracy says how good the expert is, not the model.

    Raises:
        UserError: `quality` is not between 0 and 1, or the diary is damaged.
    """
    if not 0 <= quality <= 1:
        raise UserError(f"The label quality is {quality}; choose one from 0 to 1.")
    expert = _Expert(diary.recall(), spec.target.classes, quality, random.Random(seed), progress)
    labelled = store.append_labels(map(expert.label, store.unlabelled()))
    return LabelSummary(
        labelled, expert.seen - expert.from_predictions, expert.from_predictions, expert.guessed
    )


class _Expert:
    """Labels one capture after another, and counts."""

    def __init__(
        self,
        truths: Mapping[str, str],
        classes: tuple[str, ...],
        quality: float,
        chance: random.Random,
        progress: Callable[[str], None],
    ) -> None:
        self._truths = truths
        self._classes = classes
        self._quality = quality
        self._chance = chance
        self._progress = progress
        self.seen = self.from_predictions = self.guessed = 0

    def label(self, capture: Capture) -> Label:
        truth = self._truths.get(capture.event_id)
        if truth is None:
            truth = capture.prediction
            self.from_predictions += 1
        if self._chance.random() >= self._quality:
            truth = self._chance.choice(self._classes)
            self.guessed += 1
        self.seen += 1
        if self.seen % PROGRESS_EVERY == 0:
            self._progress(f"{self.seen} captures labelled")
        return Label(capture.event_id, truth, utc_now(), SOURCE)
