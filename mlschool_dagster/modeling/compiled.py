"""A trained model as plain arrays: the transformers and the network in one numpy function.

It needs neither scikit-learn nor Keras, so a server that loads one stays small and answers one row
in microseconds. Features are the numeric columns in the spec's order, then the one-hot categories
of each categorical column in the spec's order.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.values import InputValue

Array = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Activation = Callable[[Singles], Singles]

SPEC_FILE = "spec.json"
ARRAYS_FILE = "compiled.npz"


def _softmax(x: Singles) -> Singles:
    # Ufuncs' own reductions: on one row, the array's methods cost more than the arithmetic.
    exponentials = np.exp(x - np.maximum.reduce(x, axis=0))
    return np.asarray(exponentials / np.add.reduce(exponentials, axis=0))


def _sigmoid(x: Singles) -> Singles:
    # The logistic function as a hyperbolic tangent, which does not overflow.
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


ACTIVATIONS: Mapping[str, Activation] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "tanh": np.tanh,
}
"""What a layer does to its sums, of shape (units, rows)."""


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
    _features: "_Features" = field(init=False, repr=False)
    _steps: list[tuple[Singles, Singles, Activation]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the shapes, and lay out once what each request needs."""
        numeric, categorical = self.spec.numeric, self.spec.categorical
        for array in (self.numeric_fill, self.numeric_mean, self.numeric_scale):
            _require(array.shape == (len(numeric),), "one value per numeric column")
        for values in (self.categorical_fill, self.categories):
            _require(len(values) == len(categorical), "one entry per categorical column")
        _require(bool(self.layers), "a layer")
        units = len(numeric) + sum(map(len, self.categories))
        for layer in self.layers:
            _require(layer.activation in ACTIVATIONS, f"activations out of {sorted(ACTIVATIONS)}")
            _require(layer.bias.ndim == 1, "a bias of one dimension")
            _require(layer.kernel.shape == (units, len(layer.bias)), "kernels that fit each other")
            units = len(layer.bias)
        _require(units == len(self.spec.target.classes), "one output per class")
        _require(self.layers[-1].activation == "softmax", "a softmax as last layer")
        object.__setattr__(self, "_features", _Features(self))
        # In double precision answers would differ from the trained network's by up to 3e-6, in
        # single precision by up to 1e-6: as far as its own differ between sizes of batches.
        steps = [
            (
                layer.kernel.T.astype(np.float32),
                layer.bias[:, None].astype(np.float32),
                ACTIVATIONS[layer.activation],
            )
            for layer in self.layers
        ]
        object.__setattr__(self, "_steps", steps)

    def features(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """What the network sees of `rows`, shape (rows, features).

        Null (None or NaN) is imputed; a category that training did not know gives zeros.

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        return self._features.of(rows).T

    def probabilities(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """The probability of each class for each of `rows`, shape (rows, classes).

        The network computes in single precision, as it was trained.

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        x = self._features.of(rows).astype(np.float32)
        for kernel, bias, activate in self._steps:
            x = activate(kernel.dot(x) + bias)
        return x.T.astype(np.float64)

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


class _Features:
    """The features of a model's rows, worked out column by column.

    Arrays have shape (features, rows), so that each numpy call runs along many rows.
    """

    def __init__(self, model: CompiledModel) -> None:
        spec = model.spec
        # Numeric columns first, as in the features.
        names = [c.name for c in spec.numeric] + [c.name for c in spec.categorical]
        self._values = values_getter(names)
        self._count = len(spec.numeric)
        self._fill = model.numeric_fill[:, None]
        self._mean = model.numeric_mean[:, None]
        self._scale = model.numeric_scale[:, None]
        self._codes: list[dict[InputValue, int]] = []
        sources: list[int] = []
        codes: list[int] = []
        for categories, fill in zip(model.categories, model.categorical_fill, strict=True):
            sources += [self._count + len(self._codes)] * len(categories)
            codes += range(len(categories))
            code: dict[InputValue, int] = {name: i for i, name in enumerate(categories)}
            self._codes.append({**code, None: code[fill]} if fill in code else code)
        # Which column each one-hot feature looks at, and which code sets it.
        self._sources = np.array(sources, dtype=np.intp)
        self._code = np.array(codes, dtype=np.float64)[:, None]

    def of(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """The features of `rows`, shape (features, rows)."""
        if not rows:
            return np.empty((self._count + len(self._sources), 0))
        columns = list(zip(*map(self._values, rows), strict=True))
        encoded = map(_encode, self._codes, columns[self._count :])
        # None becomes NaN, which equals no code.
        cells = np.array([*columns[: self._count], *encoded], dtype=np.float64)
        numbers = cells[: self._count]
        np.copyto(numbers, self._fill, where=np.isnan(numbers))
        numbers -= self._mean
        numbers /= self._scale
        return np.concatenate((numbers, cells.take(self._sources, axis=0) == self._code))


def values_getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function from a row to its values of `names`, as a tuple whatever their number."""
    get = itemgetter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)


def _encode(codes: Mapping[InputValue, int], values: Sequence[InputValue]) -> list[int | None]:
    """The code of each of `values`; None where training did not know it."""
    found = list(map(codes.get, values))
    if None not in found:
        return found
    return [codes.get(None if value is None or value != value else str(value)) for value in values]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the compiled model needs {what}")
