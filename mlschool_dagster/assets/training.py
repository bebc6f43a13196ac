"""Training: the score that can be expected, the model fitted on all data, the registered version."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import (
    NETWORK_RETRIES,
    OWNERS,
    metadata_of,
    picture,
    plain_errors,
    table,
)
from mlschool_dagster.assets.data import raw_data_name
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.modeling.training import TrainingConfig
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.training import TrainingResult

GROUP = "training"

_DEFAULTS = TrainingConfig()


class TrainingSettings(dg.Config):
    """How the network is built and trained, and how good it must be."""

    hidden_layers: list[int] = Field(
        default=list(_DEFAULTS.hidden_layers), description="Units of each hidden layer, in order."
    )
    epochs: int = Field(default=_DEFAULTS.epochs, description="Passes over the training rows.")
    batch_size: int = Field(default=_DEFAULTS.batch_size, description="Rows per gradient step.")
    learning_rate: float = Field(
        default=_DEFAULTS.learning_rate, description="Step size of the optimizer."
    )
    optimizer: str = Field(default=_DEFAULTS.optimizer, description="Name of a Keras optimizer.")
    folds: int = Field(
        default=_DEFAULTS.folds, description="Stratified folds of the cross-validation."
    )
    seed: int = Field(
        default=_DEFAULTS.seed, description="Seed of folds, weights and batches: equal seed, equal model."
    )
    accuracy_threshold: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Least mean cross-validated accuracy with which a version is registered.",
    )

    def training(self) -> TrainingConfig:
        """The part that training itself needs.

        Raises:
            UserError: a value cannot be trained with.
        """
        values = self.model_dump(exclude={"accuracy_threshold"})
        return TrainingConfig(**{**values, "hidden_layers": tuple(self.hidden_layers)})
