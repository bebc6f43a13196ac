"""Simulated traffic: its configuration, its drift, and sending the rows to an endpoint.

numpy is imported inside functions, so that definitions load quickly.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from mlschool_dagster.dataset.spec import DataSpec, InputValue
from mlschool_dagster.errors import RefusedError, UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class Drift(StrEnum):
    """Kinds of drift: how the rows differ from the data that they are drawn from.

    ``SHIFT``: 1 to 3 standard deviations, uniformly drawn, are added to each value of a numeric
    column. ``COVARIATE``: rows with large values of a numeric column are drawn more often.
    ``NEW_CATEGORY``: values of a categorical column become one it never had. ``MISSING``: values of
    a column are left out. ``CONCEPT``: the rows stay, what they mean changes to the next class.
    """

    NONE = "none"
    SHIFT = "shift"
    COVARIATE = "covariate"
    NEW_CATEGORY = "new_category"
    MISSING = "missing"
    CONCEPT = "concept"


DEFAULT_SHARES = {
    Drift.NONE: 1.0,
    Drift.SHIFT: 1.0,
    Drift.COVARIATE: 1.0,
    Drift.NEW_CATEGORY: 0.3,
    Drift.MISSING: 0.3,
    Drift.CONCEPT: 0.5,
}


def following(classes: Sequence[str]) -> dict[str, str]:
    """The class after each of `classes`, the first one after the last."""
    return dict(zip(classes, (*classes[1:], classes[0]), strict=True))


@dataclass(frozen=True, slots=True)
class TrafficConfig:
    """Number of rows, size of a request, and drift of simulated traffic.

    ``column``, ``share`` (of rows affected) and ``strength`` belong to ``drift``; None leaves the
    choice to it. The strength is that of `Drift.SHIFT`: how many standard deviations are added.
    """

    samples: int = 200
    drift: Drift = Drift.NONE
    column: str | None = None
    share: float | None = None
    strength: float | None = None
    batch_size: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"The traffic setting {name} is {value}; choose 1 or more.")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(
                f"The traffic setting share is {self.share}; choose one above 0 and up to 1."
            )


NEW_CATEGORY = "elsewhere"
TAIL_STRENGTH = 2.0
"""How much likelier a row becomes per standard deviation of its value, as a power of e."""


@dataclass(frozen=True, slots=True)
class Drifted:
    """Rows of a world: its inputs, the truth about them, and in words what is different."""

    inputs: "pd.DataFrame"
    truth: "pd.Series[Any]"
    description: str


def drifted(frame: "pd.DataFrame", spec: DataSpec, config: TrafficConfig) -> Drifted:
    """Rows drawn with replacement from `frame`, changed as `config` says.

    Without a column, drift takes the numeric column with the widest plausible range (its values
    can move furthest before they are refused, and stop at its end), a new category the first
    categorical one, missing values one that may be missing; where no column is numeric, none
    shifts. Equal arguments give equal rows.

    Raises:
        UserError: the column does not exist or is of the wrong type for the drift.
    """
    import numpy as np

    drift, samples = config.drift, config.samples
    share = DEFAULT_SHARES[drift] if config.share is None else config.share
    rng = np.random.default_rng(config.seed)
    known = frame[frame[spec.target.name].notna()].reset_index(drop=True)
    if known.empty:
        raise UserError(
            f"No row has a {spec.target.name}, so there is nothing to simulate; add labelled data."
        )
    if drift is Drift.SHIFT and config.column is None and not spec.numeric:
        drift = Drift.NONE
    chosen = affected_column(spec, drift, config.column)
    affected = rng.random(samples) < share
    drawn = rng.integers(len(known), size=samples)
    if drift is Drift.COVARIATE:
        likelier = rng.choice(len(known), samples, p=_tail_weights(known[chosen]))
        drawn = np.where(affected, likelier, drawn)
    rows = known.iloc[drawn].reset_index(drop=True)
    inputs, truth = rows[spec.input_names].copy(), rows[spec.target.name]
    if drift is Drift.SHIFT:
        deviations = rng.uniform(1, 3, samples) if config.strength is None else config.strength
        shift = deviations * known[chosen].std()
        (end,) = (column.maximum for column in spec.numeric if column.name == chosen)
        moved = (inputs[chosen] + shift).clip(upper=end)
        inputs[chosen] = inputs[chosen].mask(affected, moved)
    elif drift is Drift.NEW_CATEGORY:
        inputs[chosen] = inputs[chosen].mask(affected, NEW_CATEGORY)
    elif drift is Drift.MISSING:
        inputs[chosen] = inputs[chosen].mask(affected)
    elif drift is Drift.CONCEPT:
        truth = truth.mask(affected, truth.map(following(spec.target.classes)))
    if drift is Drift.NONE:
        return Drifted(inputs, truth, "none")
    subject = "" if drift is Drift.CONCEPT else f" of {chosen}"
    return Drifted(inputs, truth, f"{drift}{subject} in {affected.sum()} of {samples} rows")


def affected_column(spec: DataSpec, drift: Drift, name: str | None = None) -> str:
    """The column that `drift` changes, `name` if that is given; the target if no input is changed.

    Raises:
        UserError: the column does not exist or is of the wrong type for the drift.
    """
    if drift in (Drift.NONE, Drift.CONCEPT):
        return spec.target.name
    if drift is Drift.NEW_CATEGORY:
        suitable, kind = [column.name for column in spec.categorical], "a categorical"
    elif drift is Drift.MISSING:
        suitable, kind = spec.input_names, "an input"
        if name is None:
            suitable, kind = [c.name for c in spec.columns if c.nullable], "a nullable"
    else:
        suitable, kind = [column.name for column in spec.numeric], "a numeric"
    if name is None and suitable:
        ranges = {column.name: column.maximum - column.minimum for column in spec.numeric}
        return max(suitable, key=lambda candidate: ranges.get(candidate, 0.0))
    if name not in suitable:
        unfit = f", which {name!r} is not" if name else ""
        raise UserError(
            f"Drift of the kind {drift} needs {kind} column{unfit}; "
            f"choose one of: {', '.join(suitable) or 'none in this data set'}."
        )
    return name


def _tail_weights(values: "pd.Series[Any]") -> "np.ndarray[Any, Any]":
    import numpy as np

    standardised = ((values - values.mean()) / values.std()).fillna(0.0).to_numpy(float)
    weights = np.exp(TAIL_STRENGTH * standardised)
    return np.asarray(weights / weights.sum())


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
