"""A trained model as plain arrays, checked and kept: the transformers and the network.

It needs neither scikit-learn nor Keras, so a server that loads one stays small and answers one row
in microseconds. How it predicts is in `predictor`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import DataSpec, InputValue
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.predictor import ACTIVATIONS, Predictor, load_arrays

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Array = npt.NDArray[np.float64]

SPEC_FILE = "spec.json"
ARRAYS_FILE = "compiled.npz"


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
    _predictor: Predictor = field(init=False, repr=False)

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
        names = [c.name for c in numeric], [c.name for c in categorical]
        object.__setattr__(self, "_predictor", Predictor(*names, self._arrays()))

    def features(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """The features of `rows`, shape (rows, features).

        Null (None or NaN) is imputed; a category that training did not know gives zeros.

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        return self._predictor.features(rows).T

    def probabilities(self, rows: Sequence[Mapping[str, InputValue]]) -> Array:
        """The probability of each class for each of `rows`, shape (rows, classes).

        A row's are the same bits whatever batch, process and CPU they are computed in.

        Raises:
            KeyError: a row lacks a column of the spec.
        """
        return self._predictor.probabilities(rows)

    def save(self, folder: Path) -> None:
        """Write the model into `folder`, which is created if needed; `load` reads it back."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).write_text(json.dumps(self.spec.to_dict(), indent=2), encoding="utf-8")
        np.savez(folder / ARRAYS_FILE, **self._arrays())

    def _arrays(self) -> dict[str, Any]:
        """The arrays as `Predictor` takes them and as they are kept."""
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
        return arrays

    @classmethod
    def load(cls, folder: Path) -> "CompiledModel":
        """The model that `save` wrote into `folder`.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            spec = DataSpec.from_dict(json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")))
            return cls._from_arrays(spec, load_arrays(folder / ARRAYS_FILE))
        except OSError as error:
            raise UserError(
                f"The compiled model in {folder} cannot be read ({error.strerror or error}); "
                "export the version again."
            ) from None
        except (BadZipFile, EOFError, KeyError, MemoryError, ValueError, UserError) as error:
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


def compile_model(transformer: "ColumnTransformer", model: Any, spec: DataSpec) -> CompiledModel:
    """The numpy-only model that predicts as `transformer` and the Keras `model` together do."""
    fill = mean = scale = np.empty(0)
    categorical_fill: tuple[str, ...] = ()
    # Transformers of no columns are never fitted.
    if spec.numeric:
        numeric = transformer.named_transformers_["numeric"]
        fill = numeric["impute"].statistics_.astype(float)
        mean, scale = numeric["standardise"].mean_, numeric["standardise"].scale_
    if spec.categorical:
        categorical = transformer.named_transformers_["categorical"]
        categorical_fill = tuple(str(value) for value in categorical["impute"].statistics_)
    return CompiledModel(
        spec=spec,
        numeric_fill=fill,
        numeric_mean=mean,
        numeric_scale=scale,
        categorical_fill=categorical_fill,
        categories=tuple(column.categories for column in spec.categorical),
        layers=tuple(
            DenseLayer(
                kernel=np.asarray(layer.kernel, dtype=float),
                bias=np.asarray(layer.bias, dtype=float),
                activation=layer.activation.__name__,
            )
            for layer in model.layers
        ),
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the compiled model needs {what}")
