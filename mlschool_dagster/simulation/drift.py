"""The kinds of drift that a simulated world can have."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.simulation.config import DEFAULT_SHARES, Drift, TrafficConfig, following

if TYPE_CHECKING:
    import pandas as pd

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
    standardised = ((values - values.mean()) / values.std()).fillna(0.0).to_numpy(float)
    weights = np.exp(TAIL_STRENGTH * standardised)
    return np.asarray(weights / weights.sum())
