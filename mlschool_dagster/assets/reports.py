"""Reports: what can be said of one hour's captures, as numbers, pictures, pages and verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import picture, plain_errors, table
from mlschool_dagster.assets.windows import (
    LABELS_FILE,
    LABELS_TOKEN,
    chosen_window,
    frozen,
    monitored_window,
    windowed_asset,
)
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.monitoring.config import (
    DEFAULT_ACCURACY_THRESHOLD,
    MAXIMUM_REFUSED_SHARE,
    DriftConfig,
)
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

_DRIFT = DriftConfig()


class ReportConfig(dg.Config):
    """How a report is drawn."""

    samples: int = Field(
        default=1000,
        ge=1,
        description="Most rows that Evidently draws; every row is counted all the same.",
    )


class DriftSettings(ReportConfig):
    """When a difference counts as drift."""

    alpha: float = Field(
        default=_DRIFT.alpha,
        description="Chance that a window without drift is flagged, over all its tests together.",
    )
    minimum_effect: float = Field(
        default=_DRIFT.minimum_effect, description="Least effect size that matters, 0 to 1."
    )
    minimum_rows: int = Field(
        default=_DRIFT.minimum_rows,
        description="Least number of values in window and reference each for a verdict.",
    )

    def drift(self) -> DriftConfig:
        """The settings as drift detection takes them.

        Raises:
            UserError: a value is out of range.
        """
        return DriftConfig(self.alpha, self.minimum_effect, self.minimum_rows)


class PerformanceSettings(ReportConfig):
    """When the model counts as degraded."""

    accuracy_threshold: float = Field(
        default=DEFAULT_ACCURACY_THRESHOLD,
        ge=0,
        le=1,
        description="The model is degraded if its measured accuracy is below this beyond chance.",
    )


def data_quality_report(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``data_quality_report``: what is wrong with a window's rows in themselves."""

    @windowed_asset(
        "data_quality_report",
        deps=["captured_traffic"],
        kinds={"evidently", "html"},
        check_specs=[
            dg.AssetCheckSpec(
                "data_quality",
                asset="data_quality_report",
                description="No missing values beyond the reference, new categories, values out "
                f"of range, constant columns, repeated events, or more than "
                f"{MAXIMUM_REFUSED_SHARE:.0%} refusals beyond chance.",
            )
        ],
        description="Missing values, new categories, ranges and duplicates of one hour's captures, "
        "beside the training data; and what was refused in that hour, by reason.",
    )
    def report(
        context: dg.AssetExecutionContext,
        config: ReportConfig,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.html import quality_html
        from mlschool_dagster.monitoring.plots import missing_shares
        from mlschool_dagster.monitoring.quality import quality

        with plain_errors():
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            found = quality(seen.current, seen.reference, spec, seen.refusals)
            page = files.window(seen.window, "data_quality_report.html")
            quality_html(
                seen.current, seen.reference, spec, seen.subject, found, page, config.samples
            )
            context.log.info(found.summary)
            return dg.MaterializeResult(
                metadata={
                    "report": files.link(page),
                    **seen.metadata(),
                    "findings": float(len(found.findings)),
                    "missing_share": _share_missing(found.rows()),
                    "missing_values": picture(missing_shares(found), "missing share per column"),
                    "columns": table(found.rows()),
                    "refused": float(found.refused),
                    "refused_share": found.refused_share or 0.0,
                    "refusals": table(
                        {"reason": reason, "refused": count}
                        for reason, count in found.refusals.items()
                    ),
                },
                check_results=[
                    dg.AssetCheckResult(
                        check_name="data_quality",
                        passed=not found.findings,
                        severity=dg.AssetCheckSeverity.WARN,
                        description=found.summary,
                        metadata={"findings": float(len(found.findings))},
                    )
                ],
            )

    return report


def _share_missing(columns: Sequence[Mapping[str, Any]]) -> float:
    shares = [column["missing_share"] or 0.0 for column in columns]
    return float(sum(shares) / len(shares))


def drift_report(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``drift_report``: whether a window still looks like the training data."""

    @windowed_asset(
        "drift_report",
        deps=["captured_traffic"],
        kinds={"evidently", "scipy", "html"},
        check_specs=[
            dg.AssetCheckSpec(
                "no_drift",
                asset="drift_report",
                description="No column, prediction or confidence has drifted away from the "
                "training data, and there was enough data to say so.",
            )
        ],
        description="Two-sample tests of one hour's captures against the training data of the "
        "version that served, corrected for the number of tests and with an effect floor.",
    )
    def report(
        context: dg.AssetExecutionContext,
        config: DriftSettings,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.drift import DriftVerdict, drift
        from mlschool_dagster.monitoring.html import drift_html
        from mlschool_dagster.monitoring.plots import distributions

        with plain_errors():
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            found = drift(seen.current, seen.reference, spec, config.drift())
            page = files.window(seen.window, "drift_report.html")
            drift_html(
                seen.current, seen.reference, spec, seen.subject, found, page, config.samples
            )
            context.log.info(found.summary)
            scores = {
                f"drift_score_{test.column}": float(test.effect)
                for test in found.tests
                if test.effect is not None and test.aspect != "missing share"
            }
            return dg.MaterializeResult(
                metadata={
                    "report": files.link(page),
                    **seen.metadata(),
                    "verdict": str(found.verdict),
                    "drifted_columns": dg.MetadataValue.json(found.drifted_columns),
                    "drifted": float(len(found.drifted_columns)),
                    "distributions": picture(
                        distributions(seen.current, seen.reference, spec, found),
                        "window beside reference, per column",
                    ),
                    **scores,
                    "tests": table(found.rows()),
                },
                check_results=[
                    dg.AssetCheckResult(
                        check_name="no_drift",
                        passed=found.verdict is DriftVerdict.STABLE,
                        severity=dg.AssetCheckSeverity.WARN,
                        description=found.summary,
                        metadata={"drifted": float(len(found.drifted_columns)), **scores},
                    )
                ],
            )

    return report


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
