"""The worlds in which detectors are compared: quiet ones, and drift of several kinds."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from mlschool_dagster_tests.monitoring.samples import population, resampled, shifted

POPULATION = population()
COLUMN = "body_mass_g"
CATEGORICAL = "island"
REFERENCE_ROWS = 344

World = Callable[[int, int], pd.DataFrame]
"""Makes a window of so many rows from a seed."""


def quiet(rows: int, seed: int) -> pd.DataFrame:
    """Rows of the population, drawn with replacement."""
    return resampled(POPULATION, rows, seed)


def reference(seed: int) -> pd.DataFrame:
    """Another sample that the model could have been trained on."""
    return resampled(POPULATION, REFERENCE_ROWS, 1_000_000 + seed)


def shift(deviations: float) -> World:
    """So many standard deviations are added to each value of the column."""
    step = deviations * POPULATION[COLUMN].std()
    return lambda rows, seed: quiet(rows, seed).assign(**{COLUMN: lambda f: f[COLUMN] + step})


def spread(factor: float) -> World:
    """The column's values lie so many times as far from their mean."""
    mean = POPULATION[COLUMN].mean()
    return lambda rows, seed: quiet(rows, seed).assign(
        **{COLUMN: lambda f: mean + factor * (f[COLUMN] - mean)}
    )


def covariate(strength: float) -> World:
    """Rows become likelier by e to this power for each standard deviation of the column."""
    values = POPULATION[COLUMN]
    weights = np.exp(strength * ((values - values.mean()) / values.std()).fillna(0.0))
    return lambda rows, seed: POPULATION.sample(
        rows, replace=True, weights=weights, random_state=seed
    ).reset_index(drop=True)


def replaced(column: str, value: str | None, share: float) -> World:
    """A share of the column's values becomes `value`, or goes missing."""

    def make(rows: int, seed: int) -> pd.DataFrame:
        frame = quiet(rows, seed)
        affected = np.random.default_rng(seed).random(rows) < share
        return frame.assign(**{column: frame[column].mask(affected, value)})

    return make


def unrelated(share: float) -> World:
    """A share of the column's values is exchanged among the rows: no column changes by itself."""

    def make(rows: int, seed: int) -> pd.DataFrame:
        frame, rng = quiet(rows, seed), np.random.default_rng(seed)
        affected = np.flatnonzero(rng.random(rows) < share)
        values = frame[COLUMN].to_numpy(copy=True)
        values[affected] = values[rng.permutation(affected)]
        return frame.assign(**{COLUMN: values})

    return make


def by_default(rows: int, seed: int) -> pd.DataFrame:
    """What the platform's traffic simulation does unless told otherwise: 1 to 3 deviations more."""
    return shifted(quiet(rows, seed), COLUMN, seed)


DRIFTS: dict[str, tuple[World, str]] = {
    "default simulated drift": (by_default, COLUMN),
    "shift 0.1 sd": (shift(0.1), COLUMN),
    "shift 0.25 sd": (shift(0.25), COLUMN),
    "shift 0.5 sd": (shift(0.5), COLUMN),
    "shift 1 sd": (shift(1.0), COLUMN),
    "covariate, e^0.25 per sd": (covariate(0.25), COLUMN),
    "covariate, e^0.5 per sd": (covariate(0.5), COLUMN),
    "spread times 1.25": (spread(1.25), COLUMN),
    "spread times 1.5": (spread(1.5), COLUMN),
    "new category in 5 %": (replaced(CATEGORICAL, "elsewhere", 0.05), CATEGORICAL),
    "new category in 20 %": (replaced(CATEGORICAL, "elsewhere", 0.2), CATEGORICAL),
    "missing in 5 %": (replaced("sex", None, 0.05), "sex"),
    "missing in 20 %": (replaced("sex", None, 0.2), "sex"),
    "relations lost in 25 %": (unrelated(0.25), ""),
    "relations lost in 50 %": (unrelated(0.5), ""),
}
"""What is different, and the column that should be named; none where no column changes."""
