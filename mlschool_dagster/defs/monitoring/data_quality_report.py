"""The data-quality report: what is wrong with one hour's captures in themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import (
    of_window,
    outcomes,
    page,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import CAPTURED_TRAFFIC, DATA_QUALITY_REPORT
from mlschool_dagster.defs.monitoring.windows import (
    ReportConfig,
    chosen_window,
    monitored_window,
    windowed_asset,
)
from mlschool_dagster.monitoring.thresholds import MAXIMUM_REFUSED_SHARE
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking

NAME = DATA_QUALITY_REPORT.to_user_string()


def build_data_quality_report(
    spec: DataSpec, windows: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset ``data_quality_report``: what is wrong with a window's rows in themselves."""

    @windowed_asset(
        DATA_QUALITY_REPORT,
        windows,
        deps=[CAPTURED_TRAFFIC],
        kinds={"evidently", "html"},
        check_specs=[
            dg.AssetCheckSpec(
                "data_quality",
                asset=DATA_QUALITY_REPORT,
                description="No missing values beyond the reference, new categories, values out "
                f"of range, constant columns, repeated events, or more than "
                f"{MAXIMUM_REFUSED_SHARE:.0%} refusals beyond chance.",
            )
        ],
        description="Missing values, new categories, ranges and duplicates of one hour's captures, "
        "beside the training data; and what was refused in that hour, by reason.",
    )
    def assess_quality(
        context: dg.AssetExecutionContext,
        config: ReportConfig,
        captures: Captures,
        files: PlatformFiles,
        mlflow: MlflowTracking,
        history: History,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.metric_records import check_metrics, quality_metrics
        from mlschool_dagster.monitoring.plots import missing_shares
        from mlschool_dagster.monitoring.quality import columns_read, quality
        from mlschool_dagster.monitoring.report_pages import write_quality_page

        with plain_errors():
            seen = monitored_window(chosen_window(context, captures), spec, files, mlflow)
            chunks = seen.table.chunks(columns_read(spec))
            report = quality(chunks, seen.reference, spec, seen.refusals)
            results = [
                dg.AssetCheckResult(
                    check_name="data_quality",
                    passed=not report.findings,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=of_window(seen.window, report.summary),
                    metadata={
                        "findings": float(len(report.findings)),
                        **undecided(not report.findings and not report.n_current),
                    },
                )
            ]
            with history.metrics() as metrics:
                recorded = [*quality_metrics(seen.window, report, spec)]
                if recorded:
                    recorded += check_metrics(seen.window, outcomes(results))
                metrics.record(seen.window, NAME, recorded)
            context.log.info(of_window(seen.window, report.summary))
            place = files.new_in_window(seen.window, f"{NAME}.html")
            drawn = seen.table.sample(config.samples)

            def write(path: Path) -> str:
                return write_quality_page(
                    drawn, seen.reference, spec, seen.subject, report, path, config.samples
                )

            return dg.MaterializeResult(
                metadata={
                    **page(files, place, write),
                    **seen.metadata(),
                    "findings": float(len(report.findings)),
                    "missing_share": _share_missing(report.rows()),
                    "missing_values": picture(
                        lambda: missing_shares(report), "missing share per column"
                    ),
                    "duplicate_rows": float(report.duplicate_rows),
                    "columns": table(report.rows()),
                    "refused": float(report.refused),
                    "refused_share": report.refused_share or 0.0,
                    "refusals": table(
                        {"reason": reason, "refused": count}
                        for reason, count in report.refusals.items()
                    ),
                },
                check_results=results,
            )

    return assess_quality


def _share_missing(columns: Sequence[Mapping[str, Any]]) -> float:
    shares = [column["missing_share"] or 0.0 for column in columns]
    return float(sum(shares) / len(shares))
