"""Drift report: compare the captures of one hour with the training data."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.defs.common import (
    of_window,
    outcomes,
    page,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import CAPTURED_TRAFFIC, DRIFT_REPORT
from mlschool_dagster.defs.monitoring.windows import (
    ReportConfig,
    chosen_window,
    monitored_window,
    windowed_asset,
)
from mlschool_dagster.monitoring.thresholds import DriftConfig
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.drift import DriftReport
    from mlschool_dagster.monitoring.e_values import Evidence

NAME = DRIFT_REPORT.to_user_string()
NO_DRIFT = "no_drift"
NO_CONFIRMED_DRIFT = "no_confirmed_drift"

_DRIFT = DriftConfig()


class DriftSettings(ReportConfig):
    """Thresholds from which a difference counts as drift."""

    alpha: float = Field(
        default=_DRIFT.alpha,
        description="Chance that a window without drift is flagged, over all its tests together; "
        "and that drift is ever confirmed in 1,000 windows without any.",
    )
    minimum_effect: float = Field(
        default=_DRIFT.minimum_effect,
        description="Least effect that matters: a share of rows, or standard deviations of a "
        "quantity.",
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


def build_drift_report(
    spec: DataSpec, windows: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset ``drift_report``: tests a window's distributions against the training data."""

    @windowed_asset(
        DRIFT_REPORT,
        windows,
        deps=[CAPTURED_TRAFFIC],
        kinds={"evidently", "scipy", "html"},
        check_specs=[
            dg.AssetCheckSpec(
                NO_DRIFT,
                asset=DRIFT_REPORT,
                description="No column, prediction or confidence has drifted away from the "
                "training data, and there was enough data to say so. Of windows without drift it "
                "fails at most one in twenty.",
            ),
            dg.AssetCheckSpec(
                NO_CONFIRMED_DRIFT,
                asset=DRIFT_REPORT,
                description="The evidence of all windows up to this one, against the training data "
                "of the version that served, does not confirm drift. In 1,000 windows without "
                "drift the chance that it ever fails is at most one in twenty.",
            ),
        ],
        description="Two-sample tests of one hour's captures against the training data of the "
        "version that served, corrected for the number of tests and with an effect floor; and the "
        "evidence for drift gathered over the windows so far.",
    )
    def assess_drift(
        context: dg.AssetExecutionContext,
        config: DriftSettings,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
        history: History,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.drift import SEGMENT_ROWS, drift_by_segment, drift_from
        from mlschool_dagster.monitoring.e_values import CompositeNull, evidence
        from mlschool_dagster.monitoring.metric_records import (
            check_metrics,
            drift_metrics,
            earlier_e_values,
        )
        from mlschool_dagster.monitoring.plots import distributions, evidence_plot
        from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
        from mlschool_dagster.monitoring.report_pages import write_drift_page

        with plain_errors():
            settings = config.drift()
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            version = seen.subject.model_version
            baseline = ReferenceProfile(seen.reference, spec)
            summary = baseline.summary(
                seen.table.chunks([*spec.input_names, PREDICTION, CONFIDENCE])
            )
            report = drift_from(baseline, summary, settings)
            e_values = CompositeNull(baseline, settings).e_values(summary)
            with history.metrics() as metrics:
                earlier = earlier_e_values(metrics, seen.window, version)
                gathered = evidence([*earlier.values(), e_values], settings.alpha)
                results = [
                    _no_drift(seen.window, report),
                    _no_confirmed_drift(seen.window, gathered),
                ]
                recorded = [*drift_metrics(seen.window, version, report, e_values, gathered)]
                if recorded:
                    recorded += check_metrics(seen.window, outcomes(results))
                metrics.record(seen.window, NAME, recorded)
            place = files.new_in_window(seen.window, f"{NAME}.html")
            drawn = seen.table.sample(config.samples)

            def write(path: Path) -> str:
                return write_drift_page(
                    drawn, seen.reference, spec, seen.subject, report, path, config.samples
                )

            context.log.info(of_window(seen.window, f"{report.summary} {gathered.summary}"))
            return dg.MaterializeResult(
                metadata={
                    **page(files, place, write),
                    **seen.metadata(),
                    "verdict": str(report.verdict),
                    "drifted_columns": dg.MetadataValue.json(report.drifted_columns),
                    "drifted": float(len(report.drifted_columns)),
                    "distributions": picture(
                        lambda: distributions(drawn, seen.reference, spec, report),
                        "window beside reference, per column",
                    ),
                    **_scores(report),
                    "tests": table(report.rows()),
                    "drift_by_segment": table(
                        segment.row()
                        for segment in drift_by_segment(
                            seen.table.sample(SEGMENT_ROWS), seen.reference, spec, settings
                        )
                    ),
                    "evidence": gathered.totals[-1],
                    "evidence_over_windows": picture(
                        lambda: evidence_plot([*earlier, seen.window], gathered),
                        "evidence for drift after each window",
                    ),
                    "evidence_by_column": table(gathered.rows(e_values)),
                },
                check_results=results,
            )

    return assess_drift


def _scores(report: "DriftReport") -> dict[str, float]:
    """The effect of each column's distribution, or mean where that is compared."""
    scores: dict[str, float] = {}
    for test in report.tests:
        if test.column and test.effect is not None and test.aspect in ("distribution", "mean"):
            scores[f"drift_score_{test.column}"] = test.effect
    return scores


def _no_drift(window: Window, report: "DriftReport") -> dg.AssetCheckResult:
    from mlschool_dagster.monitoring.drift import DriftVerdict

    return dg.AssetCheckResult(
        check_name=NO_DRIFT,
        passed=report.verdict is DriftVerdict.STABLE,
        severity=dg.AssetCheckSeverity.WARN,
        description=of_window(window, report.summary),
        metadata={
            "drifted": float(len(report.drifted_columns)),
            **_scores(report),
            **undecided(report.verdict is DriftVerdict.NOT_ENOUGH_DATA),
        },
    )


def _no_confirmed_drift(window: Window, gathered: "Evidence") -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=NO_CONFIRMED_DRIFT,
        passed=not gathered.confirmed,
        severity=dg.AssetCheckSeverity.WARN,
        description=of_window(window, gathered.summary),
        metadata={
            "evidence": gathered.totals[-1],
            "threshold": gathered.threshold,
            "windows": float(len(gathered.totals)),
        },
    )
