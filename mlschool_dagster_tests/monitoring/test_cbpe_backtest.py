"""Estimates are held against what came true, and called false only beyond chance."""

from datetime import timedelta

import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.cbpe_backtest import BacktestVerdict, backtest
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster_tests.monitoring.samples import START


def history(windows: int, covered: int, labelled: int = 50) -> list[Metric]:
    """Windows of which the first `covered` came true within their interval."""
    metrics = []
    for number in range(windows):
        window = Window(START + timedelta(hours=number))
        realised = 0.9 if number < covered else 0.5
        metrics += [
            Metric(window, MetricName.ESTIMATE_OF_LABELLED, 0.92, labelled, lower=0.85, upper=0.97),
            Metric(window, MetricName.REALISED_ACCURACY, realised, labelled, lower=0.4, upper=1.0),
        ]
    return metrics


@pytest.mark.parametrize(
    ("windows", "covered", "verdict"),
    [
        (0, 0, BacktestVerdict.NOT_ENOUGH_DATA),
        (9, 0, BacktestVerdict.NOT_ENOUGH_DATA),
        (10, 10, BacktestVerdict.HOLD),
        (20, 18, BacktestVerdict.HOLD),
        (20, 16, BacktestVerdict.HOLD),
        (20, 10, BacktestVerdict.FAIL),
    ],
)
def test_the_verdict_allows_for_chance(
    windows: int, covered: int, verdict: BacktestVerdict
) -> None:
    report = backtest(history(windows, covered))
    assert report.verdict is verdict
    assert report.covered == covered
    assert len(report.rows()) == windows


def test_errors_are_reported_by_window_newest_first() -> None:
    report = backtest(history(20, 10))
    assert report.mean_absolute_error == pytest.approx((0.02 + 0.42) / 2)
    newest = report.rows()[0]
    assert (newest["window"], newest["covered"]) == ("2026-11-21-18:00", False)
    assert newest["error"] == pytest.approx(0.42)
    assert "in 10 of 20 windows" in report.summary


def test_windows_with_few_labels_or_none_do_not_count() -> None:
    window = Window(START - timedelta(hours=1))
    unlabelled = [
        Metric(window, MetricName.ESTIMATE_OF_LABELLED, None, 0),
        Metric(window, MetricName.REALISED_ACCURACY, None, 0),
    ]
    assert not backtest(unlabelled).windows
    assert not backtest(history(20, 10, labelled=29)).windows


def test_segments_and_versions_are_left_out() -> None:
    window = Window(START)
    parts = [
        Metric(window, name, 0.5, 100, segment=segment, version=version)
        for name in (MetricName.ESTIMATE_OF_LABELLED, MetricName.REALISED_ACCURACY)
        for segment, version in (("sex=MALE", ""), ("", "3"))
    ]
    report = backtest([*history(1, 1), *parts])
    (only,) = report.windows
    assert only.realised.value == 0.9
