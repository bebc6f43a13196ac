"""The drift report: judged by the window, confirmed over windows, kept in the history."""

from dataclasses import replace

import pytest

from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster_tests.platform import LATER, WINDOW, Platform, checks, metadata, traffic

ASSETS = ["captured_traffic", "drift_report"]


def recorded(platform: Platform, name: MetricName) -> list[Metric]:
    history = MetricsHistory(platform.settings.history)
    try:
        return history.read([name])
    finally:
        history.close()


@pytest.mark.slow
def test_drift_is_judged_by_the_window_and_confirmed_over_windows(
    trained_platform: Platform,
) -> None:
    platform = trained_platform
    platform.registry().promote("1")
    reference = platform.registry().reference("1")
    quiet = traffic(reference, 60, WINDOW)
    heavy = [
        replace(capture, inputs={**capture.inputs, "body_mass_g": 6000.0})
        for capture in traffic(reference, 60, LATER)
    ]
    with platform.store() as store:
        store.append([*quiet, *heavy])
    first = platform.run("monitoring_job", window=WINDOW, assets=ASSETS)
    second = platform.run("monitoring_job", window=LATER, assets=ASSETS)
    assert checks(first)["no_confirmed_drift"].passed
    check = checks(second)["no_confirmed_drift"]
    assert not check.passed
    assert "body_mass_g: the evidence of 2 windows" in str(check.description)
    found = metadata(second, "drift_report")
    assert found["evidence"] >= 40
    confirmed = {
        row.data["column"]
        for row in found["evidence_by_column"].records
        if row.data["verdict"] == "confirmed"
    }
    assert "body_mass_g" in confirmed
    evidence = recorded(platform, MetricName.DRIFT_EVIDENCE)
    assert [(m.window, m.column) for m in evidence if m.finding] == [
        (LATER, ""),
        (LATER, "body_mass_g"),
    ]
    effects = recorded(platform, MetricName.DRIFT_EFFECT)
    assert {(m.window, m.column) for m in effects if m.finding} >= {(LATER, "body_mass_g")}
    # Another look at a window changes nothing of what is known.
    assert platform.run("monitoring_job", window=LATER, assets=ASSETS).success
    assert recorded(platform, MetricName.DRIFT_EVIDENCE) == evidence
    versions = {metric.version for metric in recorded(platform, MetricName.DRIFT_E_VALUE)}
    assert versions == {"1"}
