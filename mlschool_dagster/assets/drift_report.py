"""The drift report: whether one hour's captures still look like the training data."""

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import picture, plain_errors, table
from mlschool_dagster.assets.windows import (
    ReportConfig,
    chosen_window,
    monitored_window,
    windowed_asset,
)
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

_DRIFT = DriftConfig()


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
