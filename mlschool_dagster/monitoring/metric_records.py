"""The metrics that the reports on quality, performance and drift record in the history."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import DataSpec, NumericColumn
from mlschool_dagster.monitoring.drift import DriftReport, DriftTest, DriftVerdict
from mlschool_dagster.monitoring.e_values import HORIZON, Evidence
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.performance import Accuracy, PerformanceReport
from mlschool_dagster.monitoring.quality import ColumnQuality, QualityReport
from mlschool_dagster.monitoring.segments import SMALL
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster.monitoring.thresholds import MAXIMUM_REFUSED_SHARE


def check_metrics(window: Window, outcomes: Mapping[str, bool | None]) -> Iterator[Metric]:
    """The outcomes of the asset checks of `window` by name: passed, failed, or undecided (None)."""
    for name, passed in outcomes.items():
        value = None if passed is None else float(passed)
        yield Metric(window, MetricName.CHECK, value, 0, column=name, finding=passed is False)


def performance_metrics(
    window: Window, report: PerformanceReport, cross_validated: tuple[int, int]
) -> Iterator[Metric]:
    """The numbers of the performance `report` of `window`; none of an empty one.

    `cross_validated` are the right predictions out of fold of the version that served, and all.
    """
    overall, threshold = report.overall, report.accuracy_threshold
    if not overall.rows:
        return
    yield from _accuracy(window, overall, threshold)
    right, rows = cross_validated
    expected = _share(window, MetricName.CROSS_VALIDATED_ACCURACY, right, rows)
    yield replace(expected, finding=_falls_short(overall, expected.lower))
    for version, accuracy in report.versions.items():
        yield from _accuracy(window, accuracy, threshold, version=version)
    for segment, accuracy in report.segments.items():
        yield from _segment(window, segment, accuracy, report)
        errors = accuracy.labelled - accuracy.correct
        yield _share(window, MetricName.ERROR_SHARE, errors, accuracy.labelled, segment=segment)
    yield _share(window, MetricName.LABEL_COVERAGE, overall.labelled, overall.rows)
    delay = report.label_delay.median_hours if report.label_delay else None
    yield Metric(window, MetricName.LABEL_DELAY, delay, overall.labelled)


def quality_metrics(window: Window, report: QualityReport, spec: DataSpec) -> Iterator[Metric]:
    """The numbers of the quality `report` of `window`; none of one without any traffic."""
    rows, findings = report.n_current, len(report.findings)
    if not rows and not report.refused:
        return
    yield Metric(window, MetricName.QUALITY_FINDINGS, float(findings), rows, finding=findings > 0)
    yield _share(window, MetricName.DUPLICATE_SHARE, report.duplicate_rows, rows)
    yield _share(
        window,
        MetricName.REFUSED_SHARE,
        report.refused,
        report.refused + report.answered,
        threshold=MAXIMUM_REFUSED_SHARE,
        finding=report.too_many_refused,
    )
    for column, measured in zip(spec.columns, report.columns, strict=True):
        yield _share(
            window,
            MetricName.MISSING_SHARE,
            measured.missing,
            rows,
            column=column.name,
            threshold=spec.contract.maximum_missing_share if column.nullable else 0.0,
            finding=measured.missing_is_fault,
        )
        name, count = _outside(measured, isinstance(column, NumericColumn))
        yield _share(window, name, count, rows, column=column.name, finding=count > 0)


def _outside(measured: ColumnQuality, numeric: bool) -> tuple[MetricName, int]:
    if numeric:
        return MetricName.OUT_OF_RANGE_SHARE, measured.out_of_range
    return MetricName.NEW_CATEGORY_SHARE, measured.new_category


def _segment(
    window: Window, segment: str, accuracy: Accuracy, report: PerformanceReport
) -> Iterator[Metric]:
    """As `_accuracy`, but a finding only of the worst segment, if that is beyond chance."""
    worst = report.worst
    blamed = worst is not None and worst.is_worse and worst.segment == segment
    basis = MetricName.REALISED_ACCURACY
    if worst is not None and worst.basis == "estimate":
        basis = MetricName.ESTIMATED_ACCURACY
    for metric in _accuracy(window, accuracy, report.accuracy_threshold, segment=segment):
        yield replace(metric, finding=blamed and metric.name is basis)


def _accuracy(
    window: Window,
    accuracy: Accuracy,
    threshold: float,
    segment: str = ALL,
    version: str = ALL,
) -> Iterator[Metric]:
    """Estimated and realised; a finding where the whole interval lies below the threshold."""
    estimates = {
        MetricName.ESTIMATED_ACCURACY: (accuracy.estimate, accuracy.rows),
        MetricName.ESTIMATE_OF_LABELLED: (accuracy.estimate_of_labelled, accuracy.labelled),
    }
    for name, (estimate, rows) in estimates.items():
        yield Metric(
            window,
            name,
            estimate.accuracy if estimate else None,
            rows,
            segment=segment,
            version=version,
            lower=estimate.low if estimate else None,
            upper=estimate.high if estimate else None,
            threshold=threshold,
            finding=_falls_short(accuracy, estimate.low if estimate else None)
            if name is MetricName.ESTIMATE_OF_LABELLED
            else estimate is not None and estimate.high < threshold,
        )
    low, high = accuracy.interval or (None, None)
    yield Metric(
        window,
        MetricName.REALISED_ACCURACY,
        accuracy.measured,
        accuracy.labelled,
        segment=segment,
        version=version,
        lower=low,
        upper=high,
        threshold=threshold,
        finding=high is not None and high < threshold,
    )


def _falls_short(accuracy: Accuracy, expected: float | None) -> bool:
    """Whether the interval of the measured accuracy lies below the least that was `expected`."""
    return (
        expected is not None
        and accuracy.interval is not None
        and accuracy.labelled >= SMALL
        and accuracy.interval[1] < expected
    )


def _share(
    window: Window,
    name: MetricName,
    count: int,
    rows: int,
    *,
    column: str = ALL,
    segment: str = ALL,
    threshold: float | None = None,
    finding: bool = False,
) -> Metric:
    """A share of `rows` with Wilson's interval; no value without rows."""
    low, high = wilson_interval(count, rows) if rows else (None, None)
    return Metric(
        window,
        name,
        count / rows if rows else None,
        rows,
        column=column,
        segment=segment,
        lower=low,
        upper=high,
        threshold=threshold,
        finding=finding,
    )


def earlier_e_values(
    history: MetricsHistory, window: Window, version: str
) -> dict[Window, dict[str, float]]:
    """The e-values by column of the windows before `window` that `version` answered, oldest first.

    There are at most as many as evidence is gathered over, `window` being one of them.
    """
    earlier: dict[Window, dict[str, float]] = {}
    for metric in history.read([MetricName.DRIFT_E_VALUE], until=window, newest=HORIZON):
        if metric.version == version and metric.value is not None and metric.window != window:
            earlier.setdefault(metric.window, {})[metric.column] = metric.value
    return earlier


def drift_metrics(
    window: Window,
    version: str,
    report: DriftReport,
    e_values: Mapping[str, float],
    evidence: Evidence,
) -> Iterator[Metric]:
    """The metrics of `window`, compared with the reference of `version`.

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
    """The tests of one column: the effect of the one that shows drift, else of the first."""
    drifted = [test for test in tests if test.verdict is DriftVerdict.DRIFTED]
    clearest = min(drifted, key=lambda test: test.adjusted_p_value or 0.0, default=tests[0])
    yield Metric(
        window,
        MetricName.DRIFT_EFFECT,
        clearest.effect,
        clearest.n_current,
        column=clearest.column,
        threshold=clearest.minimum_effect,
        finding=bool(drifted),
    )
    yield Metric(
        window,
        MetricName.DRIFT_P_VALUE,
        clearest.adjusted_p_value,
        clearest.n_current,
        column=clearest.column,
        threshold=clearest.alpha,
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
