"""Training: cross-validation, the final model, and its registered version."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.training.trained_model import (
    build_registered_version,
    build_trained_model,
    nightly_retraining,
    training_job,
)


def build_definitions(spec: DataSpec) -> dg.Definitions:
    """The area's definitions for a model of the data that `spec` describes."""
    return dg.Definitions(
        assets=[build_trained_model(spec), build_registered_version(spec)],
        jobs=[training_job],
        schedules=[nightly_retraining],
    )
