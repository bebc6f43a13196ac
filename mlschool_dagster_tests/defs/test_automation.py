"""Propagation: what is rebuilt because something that it is made of is newer."""

from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from mlschool_dagster.defs.keys import (
    ACCURACY_ESTIMATES,
    DASHBOARD,
    DEPLOYMENT_LEDGER,
    DRIFT_REPORT,
    ENDPOINT,
    PERFORMANCE_REPORT,
    PROMOTION_LEDGER,
    TRAFFIC_VOLUME,
    raw_data_key,
)
from mlschool_dagster_tests.defs.monitoring.test_crashes import daemon, wait_until
from mlschool_dagster_tests.platform import LATER, SPEC, WINDOW, Platform

AUTOMATED = (DASHBOARD, ACCURACY_ESTIMATES, DEPLOYMENT_LEDGER)
PROMPT = "mlschool_dagster_tests.defs.prompt_automation"
AUTOMATION_TAG = "dagster/from_automation_condition"


@dataclass
class Ticks:
    """The evaluations of the automation sensor on a platform."""

    platform: Platform
    cursor: Any = None

    def requested(self) -> set[dg.AssetKey]:
        """What one evaluation requests."""
        result = dg.evaluate_automation_conditions(
            defs=self.platform.definitions, instance=self.platform.instance, cursor=self.cursor
        )
        self.cursor = result.cursor
        return {key for key in AUTOMATED if result.get_num_requested(key)}

    def update(self, key: dg.AssetKey, partition: str | None = None) -> None:
        """Have `key` materialized."""
        self.platform.instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=partition)
        )


@pytest.fixture
def ticks(platform: Platform) -> Ticks:
    """Evaluations on a platform that is new no more."""
    ticks = Ticks(platform)
    assert ticks.requested() == {DASHBOARD}
    assert ticks.requested() == set()
    return ticks


def test_an_update_is_propagated_once(ticks: Ticks) -> None:
    ticks.update(PERFORMANCE_REPORT, WINDOW.key)
    ticks.update(PERFORMANCE_REPORT, LATER.key)
    assert ticks.requested() == {DASHBOARD, ACCURACY_ESTIMATES}
    ticks.update(ACCURACY_ESTIMATES)
    ticks.update(DASHBOARD)
    # The estimates are newer than the request was.
    assert ticks.requested() <= {DASHBOARD}
    ticks.update(DASHBOARD)
    assert ticks.requested() == set()


@pytest.mark.parametrize("key", [TRAFFIC_VOLUME, PROMOTION_LEDGER])
def test_the_dashboard_follows_what_it_shows(ticks: Ticks, key: dg.AssetKey) -> None:
    ticks.update(key)
    assert ticks.requested() == {DASHBOARD}
    assert ticks.requested() == set()


def test_the_deployment_ledger_follows_the_endpoint_and_nothing_follows_raw_data(
    ticks: Ticks,
) -> None:
    ticks.update(ENDPOINT)
    assert DEPLOYMENT_LEDGER in ticks.requested()
    ticks.update(raw_data_key(SPEC))
    assert ticks.requested() == set()


def test_an_update_during_a_run_is_propagated_after_it(ticks: Ticks) -> None:
    instance = ticks.platform.instance
    job = ticks.platform.definitions.resolve_job_def("dashboard_job")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    ticks.update(DRIFT_REPORT, WINDOW.key)
    assert ticks.requested() == set()
    ticks.update(DASHBOARD)
    instance.report_run_canceled(run)
    assert ticks.requested() == {DASHBOARD}
    assert ticks.requested() == set()


@pytest.mark.slow
def test_a_daemon_builds_the_page_propagates_and_then_rests(platform: Platform) -> None:
    """Beside our sensors, with the conditions evaluated every few seconds instead of a minute."""
    instance = platform.instance

    def runs() -> list[dg.DagsterRun]:
        return list(instance.get_runs(dg.RunsFilter(tags={AUTOMATION_TAG: "true"})))

    def built(count: int) -> bool:
        found = runs()
        return len(found) >= count and all(run.is_success for run in found)

    def evaluations() -> int:
        states = [s for s in instance.all_instigator_state() if s.name == "automation_sensor"]
        return sum(
            tick.is_completed
            for state in states
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        )

    with daemon(platform, PROMPT):
        wait_until(lambda: built(1))
        assert instance.get_latest_materialization_event(DASHBOARD)
        instance.report_runless_asset_event(dg.AssetMaterialization(ENDPOINT))
        wait_until(lambda: built(2))
        assert instance.get_latest_materialization_event(DEPLOYMENT_LEDGER)
        # The ledger itself is shown on the page.
        done = evaluations()
        wait_until(lambda: evaluations() >= done + 3 and built(2))
        settled = len(runs())
        wait_until(lambda: evaluations() >= done + 6)
        assert len(runs()) == settled <= 3
