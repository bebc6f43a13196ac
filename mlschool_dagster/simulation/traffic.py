"""Simulated traffic: rows of a data set, sent to an endpoint, with or without drift."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlschool_dagster.dataset.spec import DataSpec, InputValue
from mlschool_dagster.errors import RefusedError
from mlschool_dagster.simulation.config import TrafficConfig
from mlschool_dagster.simulation.drift import Drifted, drifted

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, InputValue]
Progress = Callable[[str], None]

PROGRESS_REPORTS = 10
"""Most progress reports of one simulation."""


class Answer(Protocol):
    """The part of a prediction that the simulation uses."""

    @property
    def event_id(self) -> str:
        """The id under which the endpoint captured the row."""

    @property
    def prediction(self) -> str:
        """The class that the endpoint answered."""


Invoke = Callable[[Sequence[Row]], Sequence[Answer]]
"""Sends rows to the endpoint: one answer each, or `RefusedError` for all of them."""


@dataclass(frozen=True, slots=True)
class TrafficSummary:
    """Counts of the rows by outcome.

    ``correct`` counts accepted rows whose prediction is the truth; ``refusals`` counts the faults
    that the endpoint named, most frequent first; ``drift`` says in words what was done to the rows.
    """

    sent: int
    accepted: int
    refused: int
    correct: int
    refusals: dict[str, int]
    drift: str


def simulate(
    frame: "pd.DataFrame",
    spec: DataSpec,
    invoke: Invoke,
    config: TrafficConfig,
    progress: Progress,
    log_truth: Callable[[Mapping[str, str]], None],
) -> TrafficSummary:
    """Sends rows drawn with replacement from `frame` (the spec's inputs and target).

    The truth of each accepted row goes to `log_truth`, by event id. A batch that the endpoint
    refuses counts as refused with all its rows, and is not sent again: with a batch size of 1 only
    the rows at fault are refused.

    Raises:
        UserError: the drift cannot be made with this data, or the endpoint cannot be reached.
    """
    world = drifted(frame, spec, config)
    rows, truths = _rows(world, spec), world.truth.tolist()
    accepted = correct = reported = 0
    refusals: Counter[str] = Counter()
    for start in range(0, len(rows), config.batch_size):
        batch = slice(start, start + config.batch_size)
        try:
            answers = invoke(rows[batch])
        except RefusedError as refusal:
            refusals.update(_reasons(refusal))
        else:
            judged = list(zip(answers, truths[batch], strict=True))
            log_truth({answer.event_id: truth for answer, truth in judged})
            accepted += len(judged)
            correct += sum(answer.prediction == truth for answer, truth in judged)
        sent = min(batch.stop, len(rows))
        if sent * PROGRESS_REPORTS // len(rows) > reported or sent == len(rows):
            reported = sent * PROGRESS_REPORTS // len(rows)
            progress(f"{sent} of {len(rows)} rows sent, {sent - accepted} refused")
    return TrafficSummary(
        sent=len(rows),
        accepted=accepted,
        refused=len(rows) - accepted,
        correct=correct,
        refusals=dict(refusals.most_common()),
        drift=world.description,
    )


def _rows(world: Drifted, spec: DataSpec) -> list[Row]:
    """The inputs as plain values: what a client would write as JSON."""
    columns = [
        [None if missing else value for value, missing in zip(values, values.isna(), strict=True)]
        for values in (world.inputs[name] for name in spec.input_names)
    ]
    return [dict(zip(spec.input_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _reasons(refusal: RefusedError) -> list[str]:
    return [_reason(fault) for fault in refusal.faults] or [str(refusal)]


def _reason(fault: Mapping[str, Any]) -> str:
    column, reason = fault.get("column"), fault.get("reason", "no reason given")
    return f"{column}: {reason}" if column else str(reason)
