"""The performance report: how often the model was right about one hour's captures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import MODEL_VERSION, PREDICTION, DataSpec
from mlschool_dagster.defs.common import (
    of_window,
    outcomes,
    page,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import CAPTURED_TRAFFIC, LABELS, PERFORMANCE_REPORT
from mlschool_dagster.defs.monitoring.windows import (
    LABELS_FILE,
    LABELS_TOKEN,
    TOKEN,
    MonitoredWindow,
    ReportConfig,
    chosen_window,
    monitored_window,
    version_folder,
    window_snapshot,
    windowed_asset,
)
from mlschool_dagster.monitoring.thresholds import DEFAULT_ACCURACY_THRESHOLD, TOLERATED_DIFFERENCE
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.calibration import ConfidenceCalibration
    from mlschool_dagster.monitoring.performance import PerformanceReport

NAME = PERFORMANCE_REPORT.to_user_string()


class PerformanceSettings(ReportConfig):
    """Thresholds from which the model counts as degraded."""

    accuracy_threshold: float = Field(
        default=DEFAULT_ACCURACY_THRESHOLD,
        ge=0,
        le=1,
        description="The model is degraded if its accuracy is below this beyond chance.",
    )
    tolerated_difference: float = Field(
        default=TOLERATED_DIFFERENCE,
        ge=0,
        le=1,
        description="By how much the error shares of protected groups may differ.",
    )


def build_performance_report(
    spec: DataSpec, windows: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset ``performance_report``: how often the model was right."""

    @windowed_asset(
        PERFORMANCE_REPORT,
        windows,
        deps=[CAPTURED_TRAFFIC, LABELS],
        kinds={"evidently", "html"},
        check_specs=[
            dg.AssetCheckSpec(name, asset=PERFORMANCE_REPORT, description=description)
            for name, description in _checks(spec).items()
        ],
        description="Accuracy of one hour's captures, estimated from calibrated confidences before "
        "labels arrive and measured as far as they have, each with its interval; by version, role "
        "and segment, with the worst segment named; and error shares by protected group.",
    )
    def assess_performance(
        context: dg.AssetExecutionContext,
        config: PerformanceSettings,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
        history: History,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        import numpy as np

        from mlschool_dagster.modeling.plots import confusion_matrix
        from mlschool_dagster.monitoring.confusion import LABELS_READ, columns_read
        from mlschool_dagster.monitoring.metric_records import check_metrics, performance_metrics
        from mlschool_dagster.monitoring.performance import performance
        from mlschool_dagster.monitoring.plots import accuracy
        from mlschool_dagster.monitoring.report_pages import write_performance_page

        with plain_errors():
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            labels = window_snapshot(files, seen.window, LABELS_FILE)
            report = performance(
                seen.table.chunks(columns_read(spec)),
                labels.chunks(LABELS_READ),
                spec,
                _calibrations(seen, spec, files, mlflow),
                config.accuracy_threshold,
                config.tolerated_difference,
            )
            place = files.new_in_window(seen.window, f"{NAME}.html")

            def write(path: Path) -> str:
                return write_performance_page(
                    seen.reference, spec, seen.subject, report, path, config.samples
                )

            results = list(_results(seen.window, report))
            with history.metrics() as metrics:
                right = seen.reference[spec.target.name] == seen.reference[PREDICTION]
                numbers = performance_metrics(seen.window, report, (int(right.sum()), len(right)))
                recorded = [*numbers]
                if recorded:
                    recorded += check_metrics(seen.window, outcomes(results))
                metrics.record(seen.window, NAME, recorded)
            context.log.info(of_window(seen.window, report.summary))
            return dg.MaterializeResult(
                metadata={
                    **page(files, place, write),
                    **seen.metadata(),
                    LABELS_TOKEN: labels.facts[TOKEN],
                    "labelled": report.overall.labelled,
                    "label_coverage": report.overall.coverage,
                    "verdict": str(report.verdict),
                    "estimated_verdict": str(report.estimated_verdict),
                    **_accuracies(report),
                    "uncalibrated_versions": ", ".join(report.uncalibrated) or "none",
                    "worst_segment": report.worst.segment if report.worst else "none to compare",
                    "accuracy": picture(
                        lambda: accuracy(report), "estimated and measured accuracy"
                    ),
                    "confusion_matrix": picture(
                        lambda: confusion_matrix(np.array(report.confusion), spec, "Labelled rows"),
                        "labelled rows by true and predicted class",
                    ),
                    "accuracy_by_version": table(report.rows()),
                    "accuracy_by_segment": table(report.segment_rows()),
                    "errors_by_protected_group": table(
                        row for column in report.fairness for row in column.rows()
                    ),
                },
                check_results=results,
            )

    return assess_performance


def _checks(spec: DataSpec) -> dict[str, str]:
    """What each check says, by its name; fairness only if the spec protects something."""
    checks = {
        "accuracy": "The measured accuracy is not below the threshold beyond chance; without "
        "labels nothing is claimed.",
        "estimated_accuracy": "The accuracy that calibrated confidences let one expect is not "
        "below the threshold, with all that is uncertain of it.",
        "segments": "No segment (by column, role or version) is worse than the rest of the rows, "
        "beyond what the worst of so many is by chance.",
    }
    if spec.protected:
        checks["fairness"] = (
            f"The model errs about equally often whatever the {' or the '.join(spec.protected)}: "
            "error shares do not differ by more than tolerated, beyond chance."
        )
    return checks


def _calibrations(
    seen: MonitoredWindow, spec: DataSpec, files: PlatformFiles, mlflow: MlflowTracking
) -> "dict[str, ConfidenceCalibration]":
    """The calibration of each version that answered in the window."""
    from mlschool_dagster.modeling.calibration import load_calibration

    versions: set[str] = set()
    for chunk in seen.table.chunks([MODEL_VERSION]):
        versions.update(chunk[MODEL_VERSION].unique())
    return {
        version: load_calibration(version_folder(version, spec, files, mlflow))
        for version in versions
    }


def _accuracies(report: "PerformanceReport") -> dict[str, float]:
    """The accuracies with their intervals, as far as they are known."""
    values: dict[str, float] = {}
    if report.overall.estimate is not None:
        estimate = report.overall.estimate
        values |= {
            "estimated_accuracy": estimate.accuracy,
            "estimated_low": estimate.low,
            "estimated_high": estimate.high,
        }
    if report.overall.measured is not None:
        values["measured_accuracy"] = report.overall.measured
    return values


def _results(window: Window, report: "PerformanceReport") -> Iterator[dg.AssetCheckResult]:
    from mlschool_dagster.monitoring.fairness import FairnessVerdict
    from mlschool_dagster.monitoring.performance import PerformanceVerdict

    degraded, unknown = PerformanceVerdict.DEGRADED, PerformanceVerdict.NOT_ENOUGH_DATA
    yield dg.AssetCheckResult(
        check_name="accuracy",
        passed=report.verdict is not degraded,
        description=of_window(window, report.summary),
        metadata={**_accuracies(report), **undecided(report.verdict is unknown)},
    )
    yield _warning(
        "estimated_accuracy",
        report.estimated_verdict is not degraded,
        of_window(window, report.estimate_summary),
        is_undecided=report.estimated_verdict is unknown,
    )
    worst = report.worst
    yield _warning(
        "segments",
        worst is None or not worst.is_worse,
        of_window(
            window,
            worst.summary if worst else "There are not two segments with enough rows to compare.",
        ),
        is_undecided=worst is None,
    )
    if report.fairness:
        verdicts = {column.verdict for column in report.fairness}
        is_fair = FairnessVerdict.UNEQUAL not in verdicts
        yield _warning(
            "fairness",
            is_fair,
            of_window(window, " ".join(column.summary for column in report.fairness)),
            is_undecided=is_fair and FairnessVerdict.NOT_ENOUGH_DATA in verdicts,
        )


def _warning(
    name: str, passed: bool, description: str, *, is_undecided: bool
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata=undecided(is_undecided),
    )
