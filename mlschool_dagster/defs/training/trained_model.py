"""Training: what accuracy to expect, the model fitted on all data, the registered version."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import (
    NETWORK_RETRIES,
    OWNERS,
    ROLLOUT_TAG,
    PlainConfig,
    metadata_of,
    picture,
    plain_errors,
    table,
)
from mlschool_dagster.defs.data.datasets import read_dataset
from mlschool_dagster.defs.keys import (
    CROSS_VALIDATION,
    REGISTERED_VERSION,
    TRAINED_MODEL,
    TRAINING_DATA,
)
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.training_config import TrainingConfig
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.evaluation import Evaluation

GROUP = "training"

_DEFAULTS = TrainingConfig()


class TrainingSettings(PlainConfig):
    """Configuration of the network, its training, and the accuracy gate."""

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
        default=_DEFAULTS.seed,
        description="Seed of folds, weights and batches: equal seed, equal model.",
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


def build_trained_model(spec: DataSpec) -> dg.AssetsDefinition:
    """The assets ``cross_validation`` and ``trained_model``, computed by one compiled program."""

    @dg.multi_asset(
        name="training",
        group_name=GROUP,
        specs=[
            dg.AssetSpec(
                CROSS_VALIDATION,
                deps=[TRAINING_DATA],
                kinds={"keras", "jax", "mlflow"},
                owners=OWNERS,
                code_version="1",
                description="What accuracy to expect of unseen data: stratified folds, "
                "transformers refitted inside each, and an out-of-fold prediction for every row.",
            ),
            dg.AssetSpec(
                TRAINED_MODEL,
                deps=[TRAINING_DATA],
                kinds={"keras", "jax", "mlflow"},
                owners=OWNERS,
                code_version="1",
                description="The network fitted on all rows, with its transformers and reference "
                "data, kept in MLflow.",
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                "accuracy_gate",
                asset=CROSS_VALIDATION,
                blocking=True,
                description="Mean cross-validated accuracy reaches accuracy_threshold; otherwise "
                "no version is registered.",
            )
        ],
    )
    def training(
        context: dg.AssetExecutionContext,
        config: TrainingSettings,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:  # type: ignore[type-arg]
        from mlschool_dagster.modeling.evaluation import evaluate
        from mlschool_dagster.modeling.model_card import model_card
        from mlschool_dagster.modeling.packaging import git_commit, log_model, log_training
        from mlschool_dagster.modeling.training import train

        with plain_errors():
            digest, origin, lineage = metadata_of(
                context, TRAINING_DATA, "digest", "source", "lineage"
            )
            frame = read_dataset(files, TRAINING_DATA.to_user_string(), digest)
            settings = config.training()
            with mlflow.asset_run(context, "trained_model") as run:
                run.set_tags(lineage)
                result = train(
                    frame, spec, settings, context.log.info, Path(files.compilation_cache)
                )
                evaluation = evaluate(result, frame, spec)
                pictures = log_training(result, evaluation, frame, spec, origin)
                model_uri = log_model(result, frame, spec, f"{spec.name}-{context.run_id[:8]}")
                sources = {
                    "source": str(origin),
                    **lineage,
                    "git commit": git_commit() or "none",
                    "Dagster run": context.run_id,
                    "MLflow run": run.run_id,
                }
                card = model_card(result, evaluation, frame, spec, sources)
                run.log_text(card, "model_card.md")
                links = {
                    "mlflow": mlflow.link(run.path),
                    "mlflow_run_id": run.run_id,
                    "data_version": digest,
                }
            yield dg.MaterializeResult(
                asset_key=CROSS_VALIDATION,
                metadata={
                    **_scores(evaluation),
                    "accuracy_threshold": config.accuracy_threshold,
                    **links,
                    **{name: picture(partial(bytes, png), name) for name, png in pictures.items()},
                    **_tables(evaluation),
                },
            )
            yield dg.MaterializeResult(
                asset_key=TRAINED_MODEL,
                metadata={
                    "model_uri": model_uri,
                    "training_loss": float(result.final_curves.loss[-1]),
                    "training_accuracy": float(result.final_curves.accuracy[-1]),
                    "parameters": float(result.model.count_params()),
                    "config": dg.MetadataValue.json(config.model_dump()),
                    "lineage": dg.MetadataValue.json(lineage),
                    "model_card": dg.MetadataValue.md(card),
                    **links,
                },
            )
            gate = _Gate(evaluation.accuracy_mean, config.accuracy_threshold)
            yield dg.AssetCheckResult(
                asset_key=CROSS_VALIDATION,
                check_name="accuracy_gate",
                passed=gate.is_open,
                description=gate.sentence,
                metadata=asdict(gate),
            )
            gate.require_open()

    return training


@dataclass(frozen=True)
class _Gate:
    """The mean cross-validated accuracy, and the least with which a version is registered."""

    accuracy_mean: float
    accuracy_threshold: float

    @property
    def is_open(self) -> bool:
        """Whether a version may be registered."""
        return self.accuracy_mean >= self.accuracy_threshold

    @property
    def sentence(self) -> str:
        """The verdict, and what to do if it is against registering."""
        score = f"Mean cross-validated accuracy {self.accuracy_mean:.4f}"
        if self.is_open:
            return f"{score} reaches accuracy_threshold {self.accuracy_threshold:g}."
        return (
            f"{score} is below accuracy_threshold {self.accuracy_threshold:g}: no version is "
            "registered. Improve data or training, or lower the threshold."
        )

    def require_open(self) -> None:
        """Raises `UserError` if no version may be registered."""
        if not self.is_open:
            raise UserError(self.sentence)


def _scores(evaluation: "Evaluation") -> dict[str, float]:
    return {
        "accuracy_mean": evaluation.accuracy_mean,
        "accuracy_std": evaluation.accuracy_std,
        "expected_calibration_error": evaluation.calibration.expected_error,
    }


def _tables(evaluation: "Evaluation") -> dict[str, dg.MetadataValue]:
    folds = enumerate(evaluation.fold_accuracies, start=1)
    return {
        "folds": table({"fold": number, "accuracy": float(score)} for number, score in folds),
        "classes": table(asdict(scores) for scores in evaluation.scores),
    }


def build_registered_version(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``registered_version``: the trained model as a version in MLflow's registry."""

    @dg.asset(
        key=REGISTERED_VERSION,
        deps=[CROSS_VALIDATION, TRAINED_MODEL],
        group_name=GROUP,
        kinds={"mlflow"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        description=f"The trained model as the newest version of {spec.name} in MLflow's registry, "
        "with the alias challenger; its folder is published among the platform's files, so that a "
        "server elsewhere can be given its URI.",
    )
    def version(
        context: dg.AssetExecutionContext, files: PlatformFiles, mlflow: MlflowTracking
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.modeling.model_card import shortened
        from mlschool_dagster.modeling.packaging import git_commit
        from mlschool_dagster.modeling.registry import PUBLISHED_TAG

        with plain_errors():
            scores = metadata_of(context, CROSS_VALIDATION, "accuracy_mean", "accuracy_threshold")
            # A check blocks only the run it was evaluated in; this holds in any other run as well.
            _Gate(*scores).require_open()
            model_uri, run_id, digest, lineage, card = metadata_of(
                context,
                TRAINED_MODEL,
                *("model_uri", "mlflow_run_id", "data_version", "lineage", "model_card"),
            )
            registry = mlflow.registry(spec.name)
            rollout = context.run.tags.get(ROLLOUT_TAG)
            tags = {
                **lineage,
                **({"rollout": rollout} if rollout else {}),
                "dagster_run_id": context.run_id,
                "dagster_asset": "registered_version",
                "data_version": digest,
                "git_commit": git_commit() or "none",
            }
            card = f"{mlflow.origin(context.run_id, 'registered_version')}\n\n{card}"
            number = registry.register(model_uri, run_id, tags, shortened(card))
            uri = files.publish(spec.name, number, registry.fetch(number, files.versions))
            registry.tag(number, {PUBLISHED_TAG: uri})
            context.log.info(f"version {number} of {spec.name}, alias challenger")
            return dg.MaterializeResult(
                metadata={
                    "version": number,
                    "published": dg.MetadataValue.path(uri),
                    "aliases": dg.MetadataValue.json(registry.aliases(number)),
                    "mlflow": mlflow.link(f"models/{spec.name}/versions/{number}"),
                    "mlflow_run_id": run_id,
                    "data_version": digest,
                    "model_card": dg.MetadataValue.md(card),
                },
                data_version=dg.DataVersion(number),
            )

    return version


training_job = dg.define_asset_job(
    "training_job",
    dg.AssetSelection.assets(REGISTERED_VERSION).upstream(),
    description="Raw data to registered version; fails, and registers nothing, when the data "
    "breaks its contract or the accuracy is below the threshold.",
    tags={"stage": "training", "dagster/max_runtime": 3600},
)
nightly_retraining = dg.ScheduleDefinition(
    name="nightly_retraining",
    job=training_job,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Trains every night at 03:00 UTC; new versions become challenger.",
)
