"""Batch prediction: files of rows, and what a registered version says of each."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import OWNERS, PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import BATCH_PREDICTIONS, REGISTERED_VERSION
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.serving.batch import BatchSummary

GROUP = "serving"


def build_batch_predictions(spec: DataSpec, default_input: str) -> dg.AssetsDefinition:
    """The asset ``batch_predictions``: read from `default_input` unless configured."""

    class BatchConfig(PlainConfig):
        """Input and output files, and the version that predicts."""

        input: str = Field(
            default=default_input,
            description="A CSV or Parquet file, or a folder of them, as a path or URI (file://, "
            "s3://, abfs://).",
        )
        output: str = Field(
            default="",
            description="Folder for predictions.parquet and rejected.parquet, as a path or URI; "
            "empty: one of the platform's, named by the run.",
        )
        version: str = Field(
            default="champion",
            description="champion, challenger, or the number of a registered version.",
        )

    @dg.asset(
        key=BATCH_PREDICTIONS,
        deps=[REGISTERED_VERSION],
        group_name=GROUP,
        kinds={"parquet", "python"},
        owners=OWNERS,
        code_version="1",
        description="A registered version's predictions for whole files, in chunks of constant "
        "memory, by the rules and the code that answer requests. Rows that break a rule are set "
        "aside with their reasons.",
    )
    def predictions(
        context: dg.AssetExecutionContext,
        config: BatchConfig,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.modeling.compiled import CompiledModel
        from mlschool_dagster.serving.batch import score

        with plain_errors():
            if config.output:
                output = files.location(config.output)
            else:
                output = files.batch(context.run_id)
                output.make_owned()
            registry = mlflow.registry(spec.name)
            version = registry.resolve(config.version).version
            summary = score(
                source=config.input,
                output=output,
                model=CompiledModel.load(registry.fetch(version, files.versions)),
                version=version,
                progress=context.log.info,
            )
            return dg.MaterializeResult(
                metadata={
                    "version": version,
                    "mlflow": mlflow.link(f"models/{spec.name}/versions/{version}"),
                    "input": dg.MetadataValue.path(config.input),
                    **_outcome(summary),
                }
            )

    return predictions


def _outcome(summary: "BatchSummary") -> dict[str, int | float | dg.MetadataValue]:
    return {
        "dagster/row_count": summary.predicted,
        "rejected": float(summary.rejected),
        "rejected_share": summary.rejected_share,
        "rows_per_second": summary.rows_per_second,
        "classes": table({"class": label, "rows": rows} for label, rows in summary.classes.items()),
        "rejected_by_reason": table(
            {"reason": reason, "rows": rows} for reason, rows in summary.reasons.items()
        ),
        "carried_along": dg.MetadataValue.text(", ".join(summary.carried) or "no other column"),
        "preview": table(summary.head),
        "predictions": dg.MetadataValue.path(summary.predictions),
        "rejections": dg.MetadataValue.path(summary.rejections),
    }


batch_job = dg.define_asset_job(
    "batch_job",
    dg.AssetSelection.assets(BATCH_PREDICTIONS),
    description="Predict on a CSV or Parquet file, or a folder of them, with the champion unless "
    "configured.",
    tags={"stage": "serving"},
)
