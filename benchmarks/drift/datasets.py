"""Data sets of other kinds than the penguins: those that scikit-learn brings along, and made ones.

Each is a population from which references and windows are drawn with replacement, as a `DataSpec`
describes it. All plausible ranges are 2,000,000 wide, as they are where nobody knows any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlschool_dagster.dataset.spec import (
    CategoricalColumn,
    Contract,
    DataSpec,
    NumericColumn,
    Target,
    probability_column,
)

WIDE = 1e6
MOST_REFERENCE_ROWS = 1_000
MADE_ROWS = 2_000
SHIFTED_COLUMNS = 5
"""Columns that are shifted in turn, evenly spread over the data set's."""


@dataclass(frozen=True)
class DataSet:
    """A population, its spec, and what a moderate drift of one of its columns is."""

    spec: DataSpec
    population: pd.DataFrame

    def reference(self, seed: int) -> pd.DataFrame:
        """Another sample that the model could have been trained on."""
        return self.window(min(len(self.population), MOST_REFERENCE_ROWS), 1_000_000 + seed)

    def window(self, rows: int, seed: int) -> pd.DataFrame:
        """A window without drift."""
        return self.population.sample(rows, replace=True, random_state=seed, ignore_index=True)

    def drifting(self) -> list[str]:
        """The columns that are shifted in turn."""
        # Of a column that is constant but for one value a quarter of its spread is rounded away.
        varying = [
            name
            for name in self.spec.input_names
            if self.population[name].value_counts().iloc[1:].sum() > 1
        ]
        return varying[:: -(-len(varying) // SHIFTED_COLUMNS)]

    def shifted(self, rows: int, seed: int, column: str) -> pd.DataFrame:
        """A window with a column shifted by 0.25 sd, or 15 % of the rows moved to one category."""
        window, rng = self.window(rows, seed), np.random.default_rng(seed)
        known = self.population[column]
        if not pd.api.types.is_numeric_dtype(known):
            others = 1 - known.value_counts(normalize=True).iloc[0]
            moved = rng.random(rows) < 0.15 / others
            return window.assign(**{column: window[column].mask(moved, known.mode()[0])})
        by = 0.25 * _spread(known)
        if known.nunique() < MADE_ROWS / 10 and (known % 1 == 0).all():
            # Whole numbers stay whole: so many of them grow by one that the mean grows by as much.
            steps = np.floor(by + rng.random(rows))
            return window.assign(**{column: window[column] + steps})
        return window.assign(**{column: window[column] + by})


def _spread(values: "pd.Series[Any]") -> float:
    """The standard deviation, or that of a normal column with the same quartiles if it is less."""
    scale = float(values.abs().max())
    low, high = (values / scale).quantile([0.25, 0.75])
    quartiles = (high - low) / 1.349
    deviation = float((values / scale).std())
    return scale * (min(quartiles, deviation) if quartiles > 0 else deviation)


def _data_set(
    name: str, columns: Mapping[str, Any], classes: Any, protected: tuple[str, ...] = ()
) -> DataSet:
    """The data set of `columns`, with a model that is right in about 95 of 100 rows."""
    frame = pd.DataFrame({str(key): value for key, value in columns.items()})
    rng = np.random.default_rng(7)
    names = tuple(f"class {value}" for value in np.unique(classes))
    truth = np.searchsorted(np.unique(classes), classes)
    confidence = 1 - 0.5 * rng.beta(0.6, 6, len(frame))
    wrong = rng.random(len(frame)) > confidence
    answer = np.where(wrong, (truth + 1) % len(names), truth)
    spec = DataSpec(
        name=name,
        description=name,
        columns=tuple(
            NumericColumn(column, column, -WIDE, WIDE, nullable=True)
            if pd.api.types.is_numeric_dtype(frame[column])
            else CategoricalColumn(column, column, tuple(sorted(frame[column].unique())))
            for column in frame
        ),
        target=Target("target", names),
        contract=Contract(30, 0.1, 1.0),
        protected=protected,
    )
    frame["target"] = [names[index] for index in truth]
    frame["prediction"] = [names[index] for index in answer]
    frame["confidence"] = confidence
    for index, label in enumerate(names):
        others = (1 - confidence) / (len(names) - 1)
        frame[probability_column(label)] = np.where(answer == index, confidence, others)
    return DataSet(spec, frame)


def _sklearn(name: str) -> DataSet:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")(as_frame=True)
    classes = loaded.target if name != "diabetes" else loaded.target > loaded.target.median()
    return _data_set(name, dict(loaded.data.items()), np.asarray(classes))


def _made(make: Callable[[np.random.Generator], Mapping[str, Any]]) -> DataSet:
    rng = np.random.default_rng(11)
    columns = make(rng)
    return _data_set(make.__name__.strip("_"), columns, rng.integers(0, 2, MADE_ROWS))


def _heavy_tails(rng: np.random.Generator) -> Mapping[str, Any]:
    base = rng.normal(size=(MADE_ROWS, 4))
    base[:, 1] += base[:, 0]
    return {
        "lognormal": np.exp(2.5 * base[:, 0]),
        "related": np.exp(2.5 * base[:, 1]),
        "cauchy": rng.standard_cauchy(MADE_ROWS),
        "huge": np.exp(30 * base[:, 2]) * 1e200,
        "tiny": np.exp(base[:, 3]) * 1e-300,
    }


def _mostly_zero(rng: np.random.Generator) -> Mapping[str, Any]:
    return {
        "claims": rng.binomial(1, 0.01, MADE_ROWS) * rng.integers(1, 5, MADE_ROWS),
        "amount": rng.binomial(1, 0.03, MADE_ROWS) * np.exp(rng.normal(5, 1, MADE_ROWS)),
        "visits": rng.poisson(0.05, MADE_ROWS),
        "age": rng.normal(40, 10, MADE_ROWS),
    }


def _whole_numbers(rng: np.random.Generator) -> Mapping[str, Any]:
    grade = rng.integers(1, 6, MADE_ROWS)
    return {
        "grade": grade,
        "flag": rng.binomial(1, 0.3, MADE_ROWS),
        "dice": rng.integers(1, 7, MADE_ROWS) + grade,
        "rounded": np.round(rng.normal(0, 1.5, MADE_ROWS)),
        "score": rng.binomial(20, 0.5, MADE_ROWS),
    }


def _rare_categories(rng: np.random.Generator) -> Mapping[str, Any]:
    shares = 1 / np.arange(1, 101) ** 1.3
    names = [f"place {number}" for number in range(100)]
    return {
        "place": rng.choice(names, MADE_ROWS, p=shares / shares.sum()),
        "kind": rng.choice(["a", "b", "c"], MADE_ROWS, p=[0.6, 0.39, 0.01]),
        "size": rng.normal(size=MADE_ROWS),
    }


def _categories_only(rng: np.random.Generator) -> Mapping[str, Any]:
    return {
        f"question {number}": rng.choice(list("abcd"), MADE_ROWS, p=[0.4, 0.3, 0.2, 0.1])
        for number in range(6)
    }


def _one_column(rng: np.random.Generator) -> Mapping[str, Any]:
    return {"only": rng.gamma(2.0, 3.0, MADE_ROWS)}


def _sixty_columns(rng: np.random.Generator) -> Mapping[str, Any]:
    hidden = rng.normal(size=(MADE_ROWS, 6))
    mixed = hidden @ rng.normal(size=(6, 60)) + 2 * rng.normal(size=(MADE_ROWS, 60))
    return {f"sensor {number}": column for number, column in enumerate(mixed.T)}


def _hardly_varying(rng: np.random.Generator) -> Mapping[str, Any]:
    once = np.full(MADE_ROWS, 39.1)
    once[0] = 39.1000000000001
    return {
        "constant": np.full(MADE_ROWS, 17.0),
        "nearly constant": once,
        "narrow": 1e6 + 1e-6 * rng.normal(size=MADE_ROWS),
        "length": rng.normal(100, 5, MADE_ROWS),
    }


DATA_SETS: dict[str, Callable[[], DataSet]] = {
    **{
        name.replace("_", " "): lambda name=name: _sklearn(name)  # type: ignore[misc]
        for name in ("iris", "wine", "breast_cancer", "digits", "diabetes")
    },
    "heavy tails": lambda: _made(_heavy_tails),
    "mostly zero": lambda: _made(_mostly_zero),
    "whole numbers": lambda: _made(_whole_numbers),
    "100 places": lambda: _made(_rare_categories),
    "categories only": lambda: _made(_categories_only),
    "one column": lambda: _made(_one_column),
    "60 columns": lambda: _made(_sixty_columns),
    "hardly varying": lambda: _made(_hardly_varying),
}
