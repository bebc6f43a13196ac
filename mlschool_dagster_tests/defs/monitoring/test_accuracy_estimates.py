"""What reports conclude is in the history, and estimates are held against what came true there."""

from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster_tests.platform import (
    WINDOW,
    Platform,
    checks,
    metadata,
    traffic,
    truth,
    undecided,
)


def test_a_window_leaves_its_numbers_and_monitored_again_the_same(
    trained_platform: Platform,
) -> None:
    platform = trained_platform
    platform.registry().promote("1")
    captures = traffic(platform.registry().reference("1"), 60)
    with platform.store() as store:
        store.append(captures)
        store.append_labels(truth(captures[:40], right=False))
    made = ["captured_traffic", "labels", "performance_report"]
    result = platform.run("monitoring_job", window=WINDOW, assets=made)
    assert result.success
    found = recorded(platform)
    estimated = found[MetricName.ESTIMATED_ACCURACY, ALL, ALL]
    realised = found[MetricName.REALISED_ACCURACY, ALL, "1"]
    assert (estimated.rows, estimated.finding) == (60, False)
    assert (realised.rows, realised.value, realised.finding) == (40, 0.0, True)
    assert found[MetricName.LABEL_COVERAGE, ALL, ALL].value == 40 / 60
    assert (MetricName.ERROR_SHARE, "role=primary", ALL) in found
    report = metadata(result, "performance_report")
    assert report["uncalibrated_versions"] == "none"
    assert report["estimated_low"] <= report["estimated_accuracy"] <= report["estimated_high"]
    results = checks(result)
    assert not results["accuracy"].passed
    assert results["estimated_accuracy"].passed
    assert "accuracy" not in undecided(result)
    compared = platform.run("dashboard_job", assets=["accuracy_estimates"])
    (check,) = checks(compared).values()
    assert not check.passed
    assert undecided(compared) == {"estimates_hold"}
    history = MetricsHistory(platform.settings.history)
    outcomes = {m.column: m.value for m in history.read([MetricName.CHECK], since=WINDOW)}
    history.close()
    assert (outcomes["accuracy"], outcomes["estimates_hold"]) == (0, None)
    assert "rows so far: 1; a verdict" in str(check.description)
    (row,) = metadata(compared, "accuracy_estimates")["windows"].records
    assert (row.data["window"], row.data["covered"]) == (WINDOW.key, False)
    assert platform.run("monitoring_job", window=WINDOW, assets=made).success
    assert recorded(platform) == found


def recorded(platform: Platform) -> dict[tuple[MetricName, str, str], Metric]:
    """The metrics of the window, by name, segment and version."""
    history = MetricsHistory(platform.settings.history)
    try:
        return {(m.name, m.segment, m.version): m for m in history.read(since=WINDOW)}
    finally:
        history.close()
