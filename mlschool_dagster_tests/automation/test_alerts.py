"""The failure sensor: whatever went wrong is told, once."""

import dagster as dg
import pytest

from mlschool_dagster.automation.alerts import alert_sensor
from mlschool_dagster_tests.platform import Platform


@dg.asset(check_specs=[dg.AssetCheckSpec("plausible", asset="measured")])
def measured() -> dg.MaterializeResult:  # type: ignore[type-arg]
    check = dg.AssetCheckResult(check_name="plausible", passed=False, description="Too warm.")
    return dg.MaterializeResult(check_results=[check])


@dg.asset
def broken() -> None:
    raise ValueError("the sky fell")


class Ticks:
    """The sensor's ticks, each beginning with what the one before it left behind."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def news(self) -> str:
        """What one tick tells."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        data = alert_sensor().evaluate_tick(context)
        self.cursor = data.cursor
        return str(data.skip_message)


@pytest.fixture
def ticks(platform: Platform) -> Ticks:
    return Ticks(platform.instance)


def run(ticks: Ticks, asset: dg.AssetsDefinition) -> str:
    return dg.materialize([asset], instance=ticks.instance, raise_on_error=False).run_id


NOTHING = "Nothing went wrong."


def test_a_failed_run_is_told_once(ticks: Ticks) -> None:
    assert ticks.news() == NOTHING
    run_id = run(ticks, broken)
    news = ticks.news()
    assert run_id in news
    assert "failed" in news
    assert ticks.news() == NOTHING


def test_a_failed_check_of_a_run_that_succeeded_is_told_once(ticks: Ticks) -> None:
    assert ticks.news() == NOTHING
    run_id = run(ticks, measured)
    assert ticks.news() == (f"Check plausible on measured did not pass in run {run_id}: Too warm.")
    assert ticks.news() == NOTHING


def test_what_ended_before_the_first_tick_is_history(ticks: Ticks) -> None:
    run(ticks, broken)
    run(ticks, measured)
    assert ticks.news() == NOTHING
    assert ticks.news() == NOTHING


def test_a_user_error_is_told_by_its_sentence(platform: Platform) -> None:
    ticks = Ticks(platform.instance)
    ticks.news()
    platform.run("training_job", {"raw_penguins": {"uri": "nowhere.csv"}})
    news = ticks.news()
    assert "There is no data at nowhere.csv" in news
    assert "Check contract on raw_penguins did not pass" in news
