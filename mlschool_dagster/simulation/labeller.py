"""Simulated labellers: they label captures some time after the answer, with a chosen quality."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.simulation.traffic import following

SOURCE = "simulated labeller"
DEFAULT_QUALITY = 0.8
PROGRESS_EVERY = 10_000
"""Labels between two reports of progress."""


class LabelledStore(Protocol):
    """The part of a capture store that a labeller uses."""

    def unlabelled(self) -> Iterator[Capture]:
        """Every capture without a label, streamed."""

    def append_labels(self, labels: Iterable[Label]) -> int:
        """Keeps `labels` in bounded batches; returns how many were written."""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """Counts of the labels by their origin.

    ``from_log`` and ``from_predictions`` count captures by where their truth was taken from;
    ``guessed`` counts those of both that were given a random class instead.
    """

    labelled: int
    from_log: int
    from_predictions: int
    guessed: int


@dataclass(frozen=True, slots=True)
class Labeller:
    """Somebody who labels, known as ``source``.

    With probability ``quality`` the label is the truth, else a class drawn uniformly, which may
    happen to be the truth. One who ``lies`` takes each truth for the next class.

    Raises:
        UserError: ``quality`` is not between 0 and 1.
    """

    source: str = SOURCE
    quality: float = DEFAULT_QUALITY
    lies: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 1:
            raise UserError(f"The label quality is {self.quality}; choose one from 0 to 1.")


def label_captures(
    store: LabelledStore,
    truths: Mapping[str, str],
    spec: DataSpec,
    labellers: Sequence[Labeller] = (Labeller(),),
    seed: int = 42,
    progress: Callable[[str], None] = lambda _: None,
    until: datetime | None = None,
) -> LabelSummary:
    """Labels every capture of `store` that has no label; run again, it has nothing left to do.

    Each capture is given to one of `labellers` at random, who knows its truth from `truths` (by
    event id, from the ground-truth log). A capture that was not simulated is not in it: its
    prediction stands in for the truth, so its measured accuracy says how good the labeller is, not
    the model. With `until` (timezone-aware), captures of that moment and later are left alone.
    """
    panel = _Panel(truths, spec.target.classes, labellers, random.Random(seed), progress)
    chosen = (c for c in store.unlabelled() if until is None or c.captured_at < until)
    labelled = store.append_labels(map(panel.label, chosen))
    return LabelSummary(
        labelled, panel.seen - panel.from_predictions, panel.from_predictions, panel.guessed
    )


class _Panel:
    """Labels one capture after another, and counts."""

    def __init__(
        self,
        truths: Mapping[str, str],
        classes: tuple[str, ...],
        labellers: Sequence[Labeller],
        chance: random.Random,
        progress: Callable[[str], None],
    ) -> None:
        self._truths = truths
        self._classes = classes
        self._labellers = labellers
        self._chance = chance
        self._progress = progress
        self.seen = self.from_predictions = self.guessed = 0

    def label(self, capture: Capture) -> Label:
        truth = self._truths.get(capture.event_id)
        if truth is None:
            truth = capture.prediction
            self.from_predictions += 1
        labeller = self._chance.choice(self._labellers)
        if self._chance.random() >= labeller.quality:
            truth = self._chance.choice(self._classes)
            self.guessed += 1
        elif labeller.lies:
            truth = following(self._classes)[truth]
        self.seen += 1
        if self.seen % PROGRESS_EVERY == 0:
            self._progress(f"{self.seen} captures labelled")
        return Label(capture.event_id, truth, utc_now(), labeller.source)
