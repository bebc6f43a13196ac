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
import pandas as pd  # noqa: TID253


class ServingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Rows of the spec's inputs in; prediction, confidence and probability of each class out."""

    def load_context(self, context: Any) -> None:
        """Load the transformers and the network from the version folder."""
        os.environ["KERAS_BACKEND"] = "jax"
        import keras
        import skops.io

        folder = Path(context.artifacts["version"])
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.inputs = {
            column["name"]: float if column["type"] == "numeric" else object
            for column in spec["columns"]
        }
        self.classes = spec["target"]["classes"]
        self.transformer = skops.io.load(folder / "transformer.skops", trusted=["numpy.dtype"])
        self.network = keras.saving.load_model(folder / "network.keras", compile=False)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per row of `model_input`.

        Columns: ``prediction``, ``confidence`` and ``probability_<class>`` for each class.
        """
        import numpy as np

        # scikit-learn takes NaN for missing, but JSON's null arrives as None.
        rows = model_input[list(self.inputs)].fillna(np.nan).astype(self.inputs)
        features = self.transformer.transform(rows).astype("float32")
        probabilities = np.asarray(self.network.predict_on_batch(features), dtype=float)
        columns = {
            "prediction": [self.classes[code] for code in probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        } | {
            f"probability_{label}": probabilities[:, position]
            for position, label in enumerate(self.classes)
        }
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(ServingModel())
