"""A trained model as plain arrays: the transformers and the network in one numpy function.

It needs neither scikit-learn nor Keras, so a server that loads one stays small and answers one row
in microseconds. Features are the numeric columns in the spec's order, then the one-hot categories
of each categorical column in the spec's order.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.values import InputValue

Array = npt.NDArray[np.float64]

SPEC_FILE = "spec.json"
ARRAYS_FILE = "compiled.npz"


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _sigmoid(x: Array) -> Array:
    # The logistic function as a hyperbolic tangent, which does not overflow.
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "tanh": np.tanh,
}


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A fully connected layer: ``activation(x @ kernel + bias)``.

    ``kernel`` has shape (inputs, units), ``bias`` (units,); ``activation`` is a name in
    `ACTIVATIONS`.
    """

    kernel: Array
    bias: Array
    activation: str


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """Imputation, standardisation, one-hot encoding and a dense network, as fitted arrays.

    ``numeric_fill``, ``numeric_mean`` and ``numeric_scale`` have one value per numeric column of
    ``spec``: what replaces a null, and what is subtracted and then divided by. ``categorical_fill``
    has one value per categorical column; ``categories`` holds, per categorical column, its one-hot
    categories in feature order. The last of ``layers`` is a softmax over the spec's classes.

    Raises:
        ValueError: the arrays do not fit each other or the spec.
    """

    spec: DataSpec
    numeric_fill: Array
    numeric_mean: Array
    numeric_scale: Array
    categorical_fill: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    layers: tuple[DenseLayer, ...]
    _numeric: list[tuple[str, float]] = field(init=False, repr=False)
    _categorical: list[tuple[str, str, dict[str, int]]] = field(init=False, repr=False)
    _width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the shapes, and lay the features out once instead of on each request."""
        numeric, categorical = self.spec.numeric, self.spec.categorical
        for array in (self.numeric_fill, self.numeric_mean, self.numeric_scale):
            _require(array.shape == (len(numeric),), "one value per numeric column")
        for values in (self.categorical_fill, self.categories):
            _require(len(values) == len(categorical), "one entry per categorical column")
        width = len(numeric)
        plan = []
        for column, fill, names in zip(
            categorical, self.categorical_fill, self.categories, strict=True
        ):
            plan.append((column.name, fill, {name: width + i for i, name in enumerate(names)}))
            width += len(names)
        _require(bool(self.layers), "a layer")
        units = width
        for layer in self.layers:
            _require(layer.activation in ACTIVATIONS, f"activations out of {sorted(ACTIVATIONS)}")
            _require(layer.bias.ndim == 1, "a bias of one dimension")
            _require(layer.kernel.shape == (units, len(layer.bias)), "kernels that fit each other")
            units = len(layer.bias)
        _require(units == len(self.spec.target.classes), "one output per class")
        _require(self.layers[-1].activation == "softmax", "a softmax as last layer")
        names_and_fills = zip((c.name for c in numeric), self.numeric_fill.tolist(), strict=True)
        object.__setattr__(self, "_numeric", list(names_and_fills))
        object.__setattr__(self, "_categorical", plan)
        object.__setattr__(self, "_width", width)

    def features(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """What the network sees of `rows`, shape (rows, features).

        Null (None or NaN) is imputed; a category that training did not know gives zeros.

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        matrix = np.zeros((len(rows), self._width))
        numbers = np.array(
            [
                [
                    default if (value := row[name]) is None or value != value else value
                    for name, default in self._numeric
                ]
                for row in rows
            ],
            dtype=np.float64,
        ).reshape(len(rows), len(self._numeric))
        matrix[:, : len(self._numeric)] = (numbers - self.numeric_mean) / self.numeric_scale
        for name, category, positions in self._categorical:
            for index, row in enumerate(rows):
                value = row[name]
                known = positions.get(category if value is None or value != value else str(value))
                if known is not None:
                    matrix[index, known] = 1.0
        return matrix

    def probabilities(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """The probability of each class for each of `rows`, shape (rows, classes).

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        x = self.features(rows)
        for layer in self.layers:
            x = ACTIVATIONS[layer.activation](x @ layer.kernel + layer.bias)
        return x

    def save(self, folder: Path) -> None:
        """Write the model into `folder`, which is created if needed; `load` reads it back."""
        arrays: dict[str, Any] = {
            "numeric_fill": self.numeric_fill,
            "numeric_mean": self.numeric_mean,
            "numeric_scale": self.numeric_scale,
            "categorical_fill": np.array(self.categorical_fill, dtype=np.str_),
            "activations": np.array([layer.activation for layer in self.layers], dtype=np.str_),
        }
        for i, names in enumerate(self.categories):
            arrays[f"categories_{i}"] = np.array(names, dtype=np.str_)
        for i, layer in enumerate(self.layers):
            arrays[f"kernel_{i}"] = layer.kernel
            arrays[f"bias_{i}"] = layer.bias
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).write_text(json.dumps(self.spec.to_dict(), indent=2), encoding="utf-8")
        np.savez(folder / ARRAYS_FILE, **arrays)

    @classmethod
    def load(cls, folder: Path) -> "CompiledModel":
        """The model that `save` wrote into `folder`.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            spec = DataSpec.from_dict(json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")))
            with np.load(folder / ARRAYS_FILE, allow_pickle=False) as arrays:
                return cls._from_arrays(spec, arrays)
        except OSError as error:
            raise UserError(
                f"The compiled model in {folder} cannot be read ({error.strerror or error}); "
                "export the version again."
            ) from None
        except (BadZipFile, EOFError, KeyError, ValueError, UserError) as error:
            raise UserError(
                f"The compiled model in {folder} is damaged ({error}); export the version again."
            ) from None

    @classmethod
    def _from_arrays(
        cls, spec: DataSpec, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> "CompiledModel":
        return cls(
            spec=spec,
            numeric_fill=arrays["numeric_fill"].astype(np.float64),
            numeric_mean=arrays["numeric_mean"].astype(np.float64),
            numeric_scale=arrays["numeric_scale"].astype(np.float64),
            categorical_fill=tuple(arrays["categorical_fill"].tolist()),
            categories=tuple(
                tuple(arrays[f"categories_{i}"].tolist()) for i in range(len(spec.categorical))
            ),
            layers=tuple(
                DenseLayer(
                    kernel=arrays[f"kernel_{i}"].astype(np.float64),
                    bias=arrays[f"bias_{i}"].astype(np.float64),
                    activation=str(activation),
                )
                for i, activation in enumerate(arrays["activations"])
            ),
        )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the compiled model needs {what}")
