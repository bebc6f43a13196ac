"""The model as MLflow serves it: what ``mlflow models serve`` runs.

MLflow copies this file into each version (models from code) and runs the copy, never a pickle. So
the file must stand alone: it imports nothing of the package, and a version keeps loading when the
package has changed or is not installed. Its only inputs are the files of the version folder. It
predicts from the fitted arrays with numpy, so that a container needs neither Keras nor JAX.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Nobody but MLflow imports this file, so nobody else pays for these.
import mlflow  # noqa: TID253
import numpy as np
import numpy.typing as npt
import pandas as pd  # noqa: TID253

Array = npt.NDArray[Any]


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
    "softmax": _softmax,
    "tanh": np.tanh,
}


class ServingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Rows of the spec's inputs in; prediction, confidence and probability of each class out."""

    def load_context(self, context: Any) -> None:
        """Load the fitted transformers and the network from the version folder."""
        folder = Path(context.artifacts["version"])
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.classes = np.array(spec["target"]["classes"], dtype=object)
        self.numeric = [c["name"] for c in spec["columns"] if c["type"] == "numeric"]
        self.categorical = [c["name"] for c in spec["columns"] if c["type"] == "categorical"]
        with np.load(folder / "compiled.npz", allow_pickle=False) as arrays:
            self.fitted = dict(arrays)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per row of `model_input`.

        Columns: ``prediction``, ``confidence`` and ``probability_<class>`` for each class.
        """
        # In single precision, as the network was trained.
        x = self._features(model_input).astype(np.float32)
        for position, activation in enumerate(self.fitted["activations"]):
            kernel, bias = self.fitted[f"kernel_{position}"], self.fitted[f"bias_{position}"]
            x = ACTIVATIONS[activation](x @ kernel.astype(np.float32) + bias.astype(np.float32))
        x = x.astype(np.float64)
        columns = {
            "prediction": self.classes[x.argmax(axis=1)],
            "confidence": x.max(axis=1),
        } | {f"probability_{label}": x[:, i] for i, label in enumerate(self.classes)}
        return pd.DataFrame(columns, index=model_input.index)

    def _features(self, rows: pd.DataFrame) -> Array:
        """What the network sees: imputed and standardised numbers, then one-hot categories."""
        fitted = self.fitted
        numbers = np.empty((len(rows), len(self.numeric)))
        for position, name in enumerate(self.numeric):
            numbers[:, position] = rows[name].to_numpy(dtype=float, na_value=np.nan)
        numbers = np.where(np.isnan(numbers), fitted["numeric_fill"], numbers)
        blocks = [(numbers - fitted["numeric_mean"]) / fitted["numeric_scale"]]
        for position, name in enumerate(self.categorical):
            values = rows[name].to_numpy(dtype=object)
            values = np.where(pd.isna(values), fitted["categorical_fill"][position], values)
            blocks.append(values.astype(str)[:, None] == fitted[f"categories_{position}"])
        return np.hstack(blocks)


mlflow.models.set_model(ServingModel())
