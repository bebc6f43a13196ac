"""Drift in the history of metrics: what a window leaves there, and what it finds there."""

from collections.abc import Iterator, Mapping

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.drift import DriftReport, DriftTest, DriftVerdict
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName, MetricsHistory
from mlschool_dagster.monitoring.sequential import HORIZON, Evidence


def earlier_e_values(
    history: MetricsHistory, window: Window, version: str
) -> dict[Window, dict[str, float]]:
    """The e-values by column of the windows before `window` that `version` answered, oldest first.

    There are at most as many as evidence is gathered over, `window` being one of them.
    """
    found: dict[Window, dict[str, float]] = {}
    for metric in history.read([MetricName.DRIFT_E_VALUE], until=window, newest=HORIZON):
        if metric.version == version and metric.value is not None and metric.window != window:
            found.setdefault(metric.window, {})[metric.column] = metric.value
    return found


def drift_metrics(
    window: Window,
    version: str,
    report: DriftReport,
    e_values: Mapping[str, float],
    evidence: Evidence,
) -> Iterator[Metric]:
    """What `window`, compared with the reference of `version`, leaves in the history.

    E-values belong to the version, because evidence is gathered against one reference; all else is
    about what served, whichever version that was. An empty window leaves nothing.
    """
    if not report.n_current:
        return
    for column in dict.fromkeys(test.column for test in report.tests):
        yield from _tested(window, [test for test in report.tests if test.column == column])
    rows = report.n_current
    for column, e_value in e_values.items():
        name = MetricName.DRIFT_E_VALUE
        yield Metric(window, name, e_value, rows, column=column, version=version)
    yield _gathered(window, evidence.totals[-1], rows, evidence.threshold)
    for column, part in evidence.parts.items():
        if column:
            yield _gathered(window, part, rows, evidence.threshold, column)


def _tested(window: Window, tests: list[DriftTest]) -> Iterator[Metric]:
    """The tests of one column: the effect of the one that found drift, else of the first."""
    drifted = [test for test in tests if test.verdict is DriftVerdict.DRIFTED]
    telling = min(drifted, key=lambda test: test.adjusted_p_value or 0.0, default=tests[0])
    yield Metric(
        window,
        MetricName.DRIFT_EFFECT,
        telling.effect,
        telling.n_current,
        column=telling.column,
        threshold=telling.minimum_effect,
        finding=bool(drifted),
    )
    yield Metric(
        window,
        MetricName.DRIFT_P_VALUE,
        telling.adjusted_p_value,
        telling.n_current,
        column=telling.column,
        threshold=telling.alpha,
        finding=bool(drifted),
    )


def _gathered(
    window: Window, value: float, rows: int, threshold: float, column: str = ALL
) -> Metric:
    return Metric(
        window,
        MetricName.DRIFT_EVIDENCE,
        value,
        rows,
        column=column,
        threshold=threshold,
        finding=value >= threshold,
    )
