"""The model as MLflow serves it: what ``mlflow models serve`` runs.

MLflow copies this file into each version (models from code) and runs the copy, never a pickle. So
the file must stand alone: it imports nothing of the package, and a version keeps loading when the
package has changed or is not installed. Its only inputs are the files of the version folder, among
them the modules with which the endpoint judges rows and predicts: so it accepts the same rows,
refuses others with the same sentences, and answers with the same bits. A container needs neither
Keras nor JAX.
"""

import importlib
import importlib.util
import sys
import uuid
from pathlib import Path
from types import ModuleType
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
        package = _package(folder / "code")
        self.model = _module(package, "compiled").CompiledModel.load(folder)
        validation = _module(package, "validation")
        self.refusal = validation.InvalidRequestError
        self.validator = validation.Validator(self.model.spec)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per row of `model_input`.

        Columns: ``prediction``, ``confidence`` and ``probability_<class>`` for each class.

        Raises:
            MlflowException: a row is not valid; the words say which, and why.
        """
        values = model_input.astype(object)
        rows = values.where(values.notna(), None).to_dict("records")  # type: ignore[call-overload]
        try:
            rows = self.validator.accept_rows(rows).rows if rows else []
        except self.refusal as error:
            raise mlflow.MlflowException.invalid_parameter_value(_sentence(error)) from None
        classes = np.array(self.model.spec.target.classes, dtype=object)
        with np.errstate(all="ignore"):
            probabilities = self.model.probabilities(rows)
        columns = {
            "prediction": classes[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        } | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(classes)}
        return pd.DataFrame(columns, index=model_input.index)


def _sentence(error: Any) -> str:
    """Why rows were refused, fault by fault."""
    faults = [
        ", ".join(f"{name} {fault[name]}" for name in ("row", "column") if name in fault)
        + f": {fault['reason']}"
        for fault in error.faults
    ]
    return " ".join([error.message, *(f"{fault}." for fault in faults)])


def _package(folder: Path) -> str:
    """The name of the package in `folder`, known to nobody else: another version has another."""
    name = f"_mlschool_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None:
        raise ImportError(f"{folder} is no package")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


mlflow.models.set_model(ServingModel())
