"""Worlds in which the truth is known: a model trained in each, and windows of shifted traffic.

A world is drawn from the penguins by a smooth bootstrap (a row, and a normal deviation of 0.25
standard deviations for each measurement), which makes an unlimited population with the same error
rate; noisier measurements make its classes overlap. A window is a tilted part of the population:
rows are drawn with weights that depend on one measurement alone, so that what a row is given its
inputs never changes (covariate shift). Two worlds break that on purpose. What the chances of the
classes are given a row's inputs is known of each world: by Bayes' theorem, from the same kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.training import TrainingResult, train
from mlschool_dagster.modeling.training_config import TrainingConfig

DATA = Path(__file__).parents[2] / "data"
SPEC = load_spec(DATA / "penguins.yaml")
PENGUINS = read_data(str(DATA / "penguins.csv"), SPEC)
NUMERIC = [column.name for column in SPEC.numeric]
SPREAD = PENGUINS[NUMERIC].std()

TRAINING_ROWS = 344
TRAININGS = 50
WINDOWS = 4
"""Windows of each training: 200 a world. Those of one training share what its calibration did not
see, so that few trainings would make a figure of chance."""

SIZES = (50, 200, 1000)
KERNEL = 0.25
POOL = 20
"""Rows of the population from which each row of a window is chosen."""

TILT = 1.5
"""Most that a row becomes likelier per standard deviation, as a power of e."""


@dataclass(frozen=True)
class World:
    """``noise`` of measurements in standard deviations; what breaks covariate shift, if anything.

    ``offset`` is added to one measurement of a window, in standard deviations: a sensor that is
    off. ``swapped`` is the share of a window's rows whose truth becomes the next class: a concept
    that has changed.
    """

    noise: float = 0.0
    offset: float = 0.0
    swapped: float = 0.0


WORLDS = {
    "covariate shift, as measured": World(),
    "covariate shift, noise of 0.5 sd": World(noise=0.5),
    "covariate shift, noise of 1 sd": World(noise=1.0),
    "sensor off by 2 sd": World(noise=0.5, offset=2.0),
    "concept changed in 20 % of rows": World(noise=0.5, swapped=0.2),
}


@dataclass(frozen=True, eq=False)
class Answered:
    """Rows that were answered, the codes of their truth, and what could be known of it.

    ``probabilities``, which the model gave, and ``chances``, which the world gives each class, have
    shape (rows, classes).
    """

    probabilities: npt.NDArray[np.float64]
    truth: npt.NDArray[np.int64]
    chances: npt.NDArray[np.float64]

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """The probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the predicted class is the true one."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.truth)

    @property
    def expected(self) -> float:
        """The accuracy that who knew the world would expect of these very rows."""
        predicted = self.probabilities.argmax(axis=1)[:, None]
        return float(np.take_along_axis(self.chances, predicted, axis=1).mean())


@dataclass(frozen=True, eq=False)
class Trained:
    """A model of a world: its out-of-fold rows, and windows of equal size that it answered."""

    reference: Answered
    windows: list[Answered]


def trainings(world: World, compiled: Path) -> Iterator[Trained]:
    """Models of `world`, each trained on other rows, with their windows."""
    for number in range(TRAININGS):
        rows, result = _trained(world.noise, number, compiled)
        size, rng = SIZES[number % len(SIZES)], np.random.default_rng(number)
        yield Trained(
            Answered(result.probabilities.astype(float), _codes(rows), _chances(rows, world.noise)),
            [_window(result, size, world, rng) for _ in range(WINDOWS)],
        )


@cache
def _trained(noise: float, number: int, compiled: Path) -> tuple[pd.DataFrame, TrainingResult]:
    rng = np.random.default_rng([number, round(noise * 10)])
    rows = _population(TRAINING_ROWS, noise, rng)
    return rows, train(rows, SPEC, TrainingConfig(seed=number), compilation_cache=compiled)


def _population(rows: int, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    drawn = PENGUINS.iloc[rng.integers(len(PENGUINS), size=rows)].reset_index(drop=True)
    drawn[NUMERIC] += rng.normal(scale=_kernel(noise), size=(rows, len(NUMERIC)))
    return drawn


def _kernel(noise: float) -> npt.NDArray[np.float64]:
    """The standard deviation of each measurement around the penguin that it was drawn from."""
    return np.hypot(KERNEL, noise) * SPREAD.to_numpy()


def _chances(rows: pd.DataFrame, noise: float) -> npt.NDArray[np.float64]:
    """The chance of each class given the inputs of each of `rows`, shape (rows, classes)."""
    distances = np.zeros((len(rows), len(PENGUINS)))
    for column, kernel in zip(NUMERIC, _kernel(noise), strict=True):
        ours, theirs = rows[column].to_numpy()[:, None], PENGUINS[column].to_numpy()
        squares = ((ours - theirs) / kernel) ** 2
        distances += np.where(np.isnan(ours) & np.isnan(theirs), 0.0, squares)
    for category in SPEC.categorical:
        ours, theirs = (frame[category.name].fillna("").to_numpy() for frame in (rows, PENGUINS))
        distances[ours[:, None] != theirs] = np.inf
    # What is missing on one side alone was not drawn from there.
    distances = np.nan_to_num(distances, nan=np.inf, posinf=np.inf)
    weights = np.exp(-(distances - distances.min(axis=1, keepdims=True)) / 2)
    of_class = np.eye(len(SPEC.target.classes))[_codes(PENGUINS)]
    return np.asarray(weights @ of_class / weights.sum(axis=1, keepdims=True))


def _window(result: TrainingResult, rows: int, world: World, rng: np.random.Generator) -> Answered:
    pool = _population(POOL * rows, world.noise, rng)
    column = NUMERIC[rng.integers(len(NUMERIC))]
    standardised = ((pool[column] - pool[column].mean()) / pool[column].std()).fillna(0.0)
    weights = np.exp(rng.uniform(-TILT, TILT) * standardised.to_numpy())
    chosen = rng.choice(len(pool), rows, replace=False, p=weights / weights.sum())
    window = pool.iloc[chosen].reset_index(drop=True)
    chances = _chances(window, world.noise)
    window[column] += world.offset * SPREAD[column]
    classes = SPEC.target.classes
    following = dict(zip(classes, (*classes[1:], classes[0]), strict=True))
    swapped = rng.random(rows) < world.swapped
    truth = window[SPEC.target.name]
    window[SPEC.target.name] = truth.mask(swapped, truth.map(following))
    chances += world.swapped * (np.roll(chances, 1, axis=1) - chances)
    features = result.transformer.transform(input_frame(window, SPEC)).astype(np.float32)
    probabilities = np.asarray(result.model.predict_on_batch(features), dtype=float)
    return Answered(probabilities, _codes(window), chances)


def _codes(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    return rows[SPEC.target.name].map(SPEC.target.classes.index).to_numpy()
