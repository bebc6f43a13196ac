"""A trained model as files.

The version folder holds all that later steps need of a version: ``spec.json`` and ``compiled.npz``
(the fitted transformers and weights as arrays, which the endpoint serves), ``network.keras`` (the
Keras model they were exported from), ``reference.parquet`` (training rows with out-of-fold
predictions), and ``calibration.json`` (how often those are right at which confidence). Nothing in
it is a pickle, and no transformer needs scikit-learn to be read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.modeling.calibration import fit_calibration
from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer
from mlschool_dagster.modeling.evaluation import reference_frame
from mlschool_dagster.modeling.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.modeling.training import TrainingResult

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.compose import ColumnTransformer

VERSION_FOLDER = "version"
NETWORK_FILE = "network.keras"
REFERENCE_FILE = "reference.parquet"


def compile_model(transformer: "ColumnTransformer", model: Any, spec: DataSpec) -> CompiledModel:
    """The numpy-only model that predicts as `transformer` and the Keras `model` together do."""
    numeric = transformer.named_transformers_["numeric"]
    categorical = transformer.named_transformers_["categorical"]
    return CompiledModel(
        spec=spec,
        numeric_fill=numeric["impute"].statistics_.astype(float),
        numeric_mean=numeric["standardise"].mean_,
        numeric_scale=numeric["standardise"].scale_,
        categorical_fill=tuple(str(value) for value in categorical["impute"].statistics_),
        categories=tuple(tuple(names) for names in categorical["encode"].categories_),
        layers=tuple(
            DenseLayer(
                kernel=np.asarray(layer.kernel, dtype=float),
                bias=np.asarray(layer.bias, dtype=float),
                activation=layer.activation.__name__,
            )
            for layer in model.layers
        ),
    )


def write_version(
    folder: Path, result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec
) -> None:
    """Write the version folder of `result`, trained on `frame`, into `folder`."""
    compile_model(result.transformer, result.model, spec).save(folder)
    result.model.save(folder / NETWORK_FILE)
    reference = reference_frame(result, frame, spec)
    reference.to_parquet(folder / REFERENCE_FILE)
    right = reference[PREDICTION] == reference[spec.target.name]
    calibration = fit_calibration(reference[CONFIDENCE].to_numpy(), right.to_numpy())
    calibration.of_another_model().save(folder)
