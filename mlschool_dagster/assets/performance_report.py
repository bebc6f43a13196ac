"""The performance report: how often the model was right about one hour's captures."""

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import picture, plain_errors, table
from mlschool_dagster.assets.windows import (
    LABELS_FILE,
    LABELS_TOKEN,
    ReportConfig,
    chosen_window,
    frozen,
    monitored_window,
    windowed_asset,
)
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.monitoring.config import DEFAULT_ACCURACY_THRESHOLD
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking


class PerformanceSettings(ReportConfig):
    """When the model counts as degraded."""

    accuracy_threshold: float = Field(
        default=DEFAULT_ACCURACY_THRESHOLD,
        ge=0,
        le=1,
        description="The model is degraded if its measured accuracy is below this beyond chance.",
    )


def performance_report(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``performance_report``: how often the model was right."""

    @windowed_asset(
        "performance_report",
        deps=["captured_traffic", "labels"],
        kinds={"evidently", "html"},
        check_specs=[
            dg.AssetCheckSpec(
                "accuracy",
                asset="performance_report",
                description="The measured accuracy is not below the threshold beyond chance; "
                "without labels nothing is claimed.",
            )
        ],
        description="Estimated accuracy of one hour's captures, and the measured one with its "
        "interval as far as labels have arrived.",
    )
    def report(
        context: dg.AssetExecutionContext,
        config: PerformanceSettings,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        import numpy as np

        from mlschool_dagster.modeling.plots import confusion_matrix
        from mlschool_dagster.monitoring.html import performance_html
        from mlschool_dagster.monitoring.performance import PerformanceVerdict, performance
        from mlschool_dagster.monitoring.plots import accuracy

        with plain_errors():
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            truth, labels_token = frozen(files, seen.window, LABELS_FILE)
            found = performance(seen.current, truth, spec, config.accuracy_threshold)
            page = files.window(seen.window, "performance_report.html")
            performance_html(
                seen.current, truth, seen.reference, spec, seen.subject, found, page, config.samples
            )
            context.log.info(found.summary)
            accuracies = _known(
                estimated_accuracy=found.overall.estimated,
                measured_accuracy=found.overall.measured,
            )
            return dg.MaterializeResult(
                metadata={
                    "report": files.link(page),
                    **seen.metadata(),
                    LABELS_TOKEN: labels_token,
                    "labelled": found.overall.labelled,
                    "label_coverage": found.overall.coverage,
                    "verdict": str(found.verdict),
                    **accuracies,
                    "accuracy": picture(accuracy(found), "estimated and measured accuracy"),
                    "confusion_matrix": picture(
                        confusion_matrix(np.array(found.confusion), spec, "Labelled rows"),
                        "labelled rows by true and predicted class",
                    ),
                    "accuracy_by_version": table(found.rows()),
                },
                check_results=[
                    dg.AssetCheckResult(
                        check_name="accuracy",
                        passed=found.verdict is not PerformanceVerdict.DEGRADED,
                        description=found.summary,
                        metadata=accuracies,
                    )
                ],
            )

    return report


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
