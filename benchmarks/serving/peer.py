"""The ordinary pyfunc: scikit-learn's transform, ``keras.predict``, a row to SQLite by pandas.

Saved by this script from the network that is registered in ``MLFLOW_TRACKING_URI``, with the
transformer fitted on the same data. Captures go into a database beside the model.

    python peer.py FOLDER
"""

import os
import sqlite3
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import joblib
import keras
import mlflow
import numpy as np
import pandas as pd


class Peer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """What a tutorial would serve."""

    def load_context(self, context: Any) -> None:
        """Load transformer, network and class names."""
        self.transformer, self.classes = joblib.load(context.artifacts["transformer"])
        self.network = keras.saving.load_model(context.artifacts["network"])
        self.lock = threading.Lock()
        self.database = Path(context.artifacts["transformer"]).with_name("captures.db")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Prediction and confidence for each row, captured."""
        # MLflow's server calls from several threads, in which Keras's predict fails at random.
        with self.lock:
            features = self.transformer.transform(model_input)
            probabilities = self.network.predict(features, verbose=0)
        predictions = [self.classes[code] for code in np.argmax(probabilities, axis=1)]
        confidences = np.max(probabilities, axis=1)
        captured = model_input.assign(
            prediction=predictions,
            confidence=confidences,
            date=datetime.now(UTC),
            uuid=[str(uuid.uuid4()) for _ in predictions],
        )
        with sqlite3.connect(self.database) as connection:
            captured.to_sql("data", connection, if_exists="append", index=False)
        return [
            {"prediction": prediction, "confidence": float(confidence)}
            for prediction, confidence in zip(predictions, confidences, strict=True)
        ]


def save(folder: Path) -> None:
    """Write the pyfunc model into `folder`."""
    from mlschool_dagster.dataset.spec import load_spec
    from mlschool_dagster.dataset.tables import read_data
    from mlschool_dagster.modeling.features import input_frame, new_transformer
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.modeling.version_folder import NETWORK_FILE

    data = Path(__file__).parents[2] / "data"
    spec = load_spec(data / "penguins.yaml")
    rows = input_frame(read_data(str(data / "penguins.csv"), spec), spec)
    with TemporaryDirectory() as temporary:
        version = Registry(os.environ["MLFLOW_TRACKING_URI"], spec.name).fetch(
            "challenger", Path(temporary, "versions")
        )
        transformer = Path(temporary, "transformer.joblib")
        joblib.dump((new_transformer(spec).fit(rows), spec.target.classes), transformer)
        mlflow.pyfunc.save_model(
            folder,
            python_model=Peer(),
            artifacts={"transformer": str(transformer), "network": str(version / NETWORK_FILE)},
            pip_requirements=["keras", "jax", "scikit-learn"],
        )


if __name__ == "__main__":
    save(Path(sys.argv[1]))
