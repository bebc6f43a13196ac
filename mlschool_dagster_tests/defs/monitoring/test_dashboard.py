"""The dashboard as an asset: it follows what it shows, and shows what is known by then."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlschool_dagster.defs.monitoring.dashboard import PAGE
from mlschool_dagster.deployment import ledger as deployments
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster_tests.monitoring import traffic_month
from mlschool_dagster_tests.monitoring.samples import START
from mlschool_dagster_tests.platform import WINDOW, Platform, metadata, traffic, truth


def page(platform: Platform) -> str:
    return (platform.files / PAGE).read_text(encoding="utf-8")


def figures(platform: Platform) -> list[Any]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', page(platform))
    return [json.loads(text) for text in found]


def test_a_platform_on_which_nothing_has_happened_has_a_page_that_says_so(
    platform: Platform,
) -> None:
    result = platform.run("dashboard_job")
    assert result.success
    shown = metadata(result, "dashboard")
    assert (shown["windows"], shown["health"], shown["problems"]) == (0.0, "no data", 0.0)
    assert Path(shown["page"]) == platform.files / PAGE
    assert "No window has been monitored yet" in page(platform)
    assert not figures(platform)


def test_the_page_shows_metrics_deployments_and_promotions(platform: Platform) -> None:
    history = MetricsHistory(platform.settings.history)
    traffic_month.fill(history, 12)
    history.close()
    at = START
    deployed = deployments.open_ledger(platform.settings.history, "penguins")
    plan, event = Plan(primary="7"), deployments.DeploymentEvent.SERVING
    deployed.append(deployments.DeploymentEntry(event, plan, "deadbeefcafe", "<the best>", at))
    deployed.close()
    ledger = open_ledger(platform.settings.history)
    ledger.append(Entry("e1", at, Step.REQUESTED, "8", "somebody", "drift & decay", {}))
    ledger.close()
    result = platform.run("dashboard_job", {"dashboard": {"windows": 10}})
    assert result.success
    shown = metadata(result, "dashboard")
    assert shown["windows"] == 10.0
    sections = [row.data["section"] for row in shown["sections"].records]
    assert sections[:3] == ["accuracy", "drift", "traffic"]
    text = page(platform)
    for expected in ("version 7", "&lt;the best&gt;", "deadbeef", "somebody", "drift &amp; decay"):
        assert expected in text
    assert "deadbeefcafe" not in text
    assert len(figures(platform)) == 8


@pytest.mark.slow
def test_what_the_reports_found_is_on_the_page(trained_platform: Platform) -> None:
    captures = [
        replace(capture, inputs={**capture.inputs, "body_mass_g": 6000.0})
        for capture in traffic(trained_platform.registry().reference("1"), 120)
    ]
    with trained_platform.store() as store:
        store.append(captures)
        store.append_labels(truth(captures))
    assert trained_platform.run("monitoring_job", window=WINDOW).success
    result = trained_platform.run("dashboard_job")
    assert result.success
    shown = metadata(result, "dashboard")
    sections = {row.data["section"]: row.data for row in shown["sections"].records}
    assert shown["health"] == "critical"
    assert sections["drift"]["status"] == "critical"
    assert "body_mass_g" in sections["drift"]["text"]
    assert sections["accuracy"]["status"] == "healthy"
    assert "Measured by labels: 100.0%" in sections["accuracy"]["text"]
    assert "Estimated without labels" in sections["accuracy"]["text"]
    assert sections["labels"]["text"].startswith(f"100.0% of {WINDOW.key} is labelled")
