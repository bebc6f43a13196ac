"""The model as MLflow serves it: what ``mlflow models serve`` runs.

MLflow copies this file into each version (models from code) and runs the copy, never a pickle. So
the file must stand alone: it imports nothing of the package, and a version keeps loading when the
package has changed or is not installed. Its only inputs are the files of the version folder, among
them ``predictor.py``, so that it predicts the same bits as the endpoint. A container needs neither
Keras nor JAX.
"""

import importlib.util
import json
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
        folder = Path(context.artifacts["version"])
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.classes = np.array(spec["target"]["classes"], dtype=object)
        self.columns = [column["name"] for column in spec["columns"]]
        predictor = _module(folder / "predictor.py")
        names = (
            [column["name"] for column in spec["columns"] if column["type"] == kind]
            for kind in ("numeric", "categorical")
        )
        self.predictor = predictor.Predictor(*names, predictor.load_arrays(folder / "compiled.npz"))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per row of `model_input`.

        Columns: ``prediction``, ``confidence`` and ``probability_<class>`` for each class.
        """
        rows = model_input[self.columns].astype(object).to_dict("records")
        with np.errstate(all="ignore"):
            probabilities = self.predictor.probabilities(rows)
        columns = {
            "prediction": self.classes[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        } | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(self.classes)}
        return pd.DataFrame(columns, index=model_input.index)


def _module(path: Path) -> Any:
    """The module in the file at `path`, known to nobody else: another version has another."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ServingModel())
