"""The model as MLflow serves it: what ``mlflow models serve`` runs.

MLflow copies this file into each version (models from code) and runs the copy, never a pickle. So
the file must stand alone: it imports nothing of the package, and a version keeps loading when the
package has changed or is not installed. Its only inputs are the files of the version folder.
"""

import json
import os
from pathlib import Path
from typing import Any

# Nobody but MLflow imports this file, so nobody else pays for these.
import mlflow  # noqa: TID253
import numpy as np
import pandas as pd  # noqa: TID253


class ServingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Rows of the spec's inputs in; prediction, confidence and probability of each class out."""

    def load_context(self, context: Any) -> None:
        """Load the fitted transformers and the network from the version folder."""
        os.environ["KERAS_BACKEND"] = "jax"
        import keras

        folder = Path(context.artifacts["version"])
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.classes = spec["target"]["classes"]
        self.numeric = [c["name"] for c in spec["columns"] if c["type"] == "numeric"]
        self.categorical = [c["name"] for c in spec["columns"] if c["type"] == "categorical"]
        with np.load(folder / "compiled.npz", allow_pickle=False) as arrays:
            self.fitted = dict(arrays)
        self.network = keras.saving.load_model(folder / "network.keras", compile=False)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per row of `model_input`.

        Columns: ``prediction``, ``confidence`` and ``probability_<class>`` for each class.
        """
        features = self._features(model_input).astype(np.float32)
        probabilities = np.asarray(self.network.predict_on_batch(features), dtype=float)
        columns = {
            "prediction": [self.classes[code] for code in probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        } | {
            f"probability_{label}": probabilities[:, position]
            for position, label in enumerate(self.classes)
        }
        return pd.DataFrame(columns, index=model_input.index)

    def _features(self, rows: pd.DataFrame) -> "np.ndarray[Any, Any]":
        """What the network sees: imputed and standardised numbers, then one-hot categories."""
        fitted = self.fitted
        numbers = rows[self.numeric].to_numpy(dtype=float, na_value=np.nan)
        numbers = np.where(np.isnan(numbers), fitted["numeric_fill"], numbers)
        blocks = [(numbers - fitted["numeric_mean"]) / fitted["numeric_scale"]]
        for position, name in enumerate(self.categorical):
            fill = str(fitted["categorical_fill"][position])
            values = rows[name].astype(object).fillna(fill).astype(str).to_numpy(dtype=str)
            blocks.append(values[:, None] == fitted[f"categories_{position}"])
        return np.hstack(blocks)


mlflow.models.set_model(ServingModel())
