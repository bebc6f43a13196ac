"""Backtest of the estimated accuracies (CBPE) over many windows."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.defs.automation import UPDATED_WITH_DEPENDENCIES
from mlschool_dagster.defs.common import (
    OWNERS,
    PlainConfig,
    outcomes,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import ACCURACY_ESTIMATES, PERFORMANCE_REPORT
from mlschool_dagster.defs.monitoring.windows import GROUP
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.cbpe_backtest import BacktestReport


class EstimatesConfig(PlainConfig):
    """Period over which estimates are compared with realised accuracy."""

    windows: int = Field(
        default=168,
        ge=1,
        description="Most windows that are compared, the newest; by default a week of hours.",
    )


@dg.asset(
    key=ACCURACY_ESTIMATES,
    automation_condition=UPDATED_WITH_DEPENDENCIES,
    deps=[PERFORMANCE_REPORT],
    group_name=GROUP,
    kinds={"table", "python"},
    owners=OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            "estimates_hold",
            asset=ACCURACY_ESTIMATES,
            description="The realised accuracy lay in the interval that was estimated before "
            "labels arrived, in nine of ten windows but for chance, and there were enough "
            "windows to say so.",
        )
    ],
)
def accuracy_estimates(
    context: dg.AssetExecutionContext, config: EstimatesConfig, history: History
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Compare each window's estimated accuracy with the accuracy that its labels showed.

    The estimate comes from calibrated confidences, before labels arrive. The report shows how far
    it was off, and how often its interval held. Where it does not, do not rely on estimates.
    """
    from mlschool_dagster.monitoring import plots
    from mlschool_dagster.monitoring.cbpe_backtest import COMPARED, backtest
    from mlschool_dagster.monitoring.metric_records import check_metrics

    with plain_errors(), history.metrics() as metrics:
        report = backtest(metrics.read(COMPARED, newest=config.windows))
        results = [_estimates_check(report)]
        if report.windows:
            newest = report.windows[-1].window
            outcome = check_metrics(newest, outcomes(results))
            metrics.record(newest, ACCURACY_ESTIMATES.to_user_string(), outcome)
    context.log.info(report.summary)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(report.windows),
            "verdict": str(report.verdict),
            **_errors(report),
            "estimated_and_realised": picture(
                lambda: plots.estimates(report), "estimated and realised accuracy over windows"
            ),
            "windows": table(report.rows()),
        },
        check_results=results,
    )


def _errors(report: "BacktestReport") -> dict[str, float]:
    """The error of the estimates and the coverage of their intervals, as far as known."""
    errors = {
        "mean_absolute_error": report.mean_absolute_error,
        "interval_coverage": report.coverage,
    }
    return {name: value for name, value in errors.items() if value is not None}


def _estimates_check(report: "BacktestReport") -> dg.AssetCheckResult:
    from mlschool_dagster.monitoring.cbpe_backtest import BacktestVerdict

    return dg.AssetCheckResult(
        check_name="estimates_hold",
        passed=report.verdict is BacktestVerdict.HOLD,
        severity=dg.AssetCheckSeverity.WARN,
        description=report.summary,
        metadata={
            **_errors(report),
            **undecided(report.verdict is BacktestVerdict.NOT_ENOUGH_DATA),
        },
    )
