"""The failure sensor: whatever goes wrong is reported, once, and so is its end."""

from datetime import timedelta

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.error import SerializableErrorInfo

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import undecided
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster_tests.alerting.servers import SECRET
from mlschool_dagster_tests.platform import LATER, WINDOW, Platform

JOB = "__ephemeral_asset_job__"
NOTHING = "Nothing went wrong."
WINDOWS = dg.HourlyPartitionsDefinition("2026-01-01-00:00", fmt="%Y-%m-%d-%H:%M")


class Mood(dg.Config):
    fails: bool = True
    unsure: bool = False


@dg.asset(check_specs=[dg.AssetCheckSpec("plausible", asset="measured")])
def measured(config: Mood) -> dg.MaterializeResult:  # type: ignore[type-arg]
    passed = not config.fails
    description = "As ever." if passed else "Too warm."
    check = dg.AssetCheckResult(
        check_name="plausible",
        passed=passed,
        description=description,
        metadata=undecided(config.unsure),
    )
    return dg.MaterializeResult(check_results=[check])


@dg.asset(partitions_def=WINDOWS, check_specs=[dg.AssetCheckSpec("fair", asset="judged")])
def judged(config: Mood) -> dg.MaterializeResult:  # type: ignore[type-arg]
    check = dg.AssetCheckResult(
        check_name="fair", passed=not config.fails, severity=dg.AssetCheckSeverity.WARN
    )
    return dg.MaterializeResult(check_results=[check])


@dg.asset
def broken(config: Mood) -> None:
    if config.fails:
        raise ValueError("the sky fell")


@dg.asset(partitions_def=WINDOWS)
def snapshots(config: Mood) -> None:
    if config.fails:
        raise ValueError("the disk is full")


@dg.asset(partitions_def=WINDOWS, deps=[snapshots])
def reported() -> None: ...


class Ticks:
    """The sensor's ticks, each beginning with what the one before it left behind."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.resources = dict(platform.definitions.resources or {})
        self.cursor: str | None = None
        assert self.notified() == NOTHING

    def notified(self) -> str:
        """What one tick tells."""
        definitions = self.platform.definitions
        with dg.build_sensor_context(
            instance=self.platform.instance,
            cursor=self.cursor,
            repository_def=definitions.get_repository_def(),
            resources={name: self.resources[name] for name in ("alerts", "history")},
        ) as context:
            sensor = definitions.resolve_sensor_def("failure_sensor")
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return str(data.skip_message)

    def run(
        self,
        asset: dg.AssetsDefinition,
        *,
        fails: bool,
        window: str | None = None,
        unsure: bool = False,
    ) -> str:
        """Materialize `asset`; the run's id."""
        return dg.materialize(
            [asset],
            instance=self.platform.instance,
            run_config=dg.RunConfig({asset.op.name: Mood(fails=fails, unsure=unsure)}),
            partition_key=window,
            raise_on_error=False,
        ).run_id

    def run_some(self, *assets: str, fails: bool, window: str = WINDOW.key) -> str:
        """Run the job of `snapshots` and `reported`, or only `assets` of it; the run's id."""
        job = dg.define_asset_job("windows_job", [snapshots, reported])
        definitions = dg.Definitions([snapshots, reported], jobs=[job])
        moods = {"ops": {"snapshots": {"config": {"fails": fails}}}}
        return (
            definitions.resolve_job_def("windows_job")
            .execute_in_process(
                run_config=moods if "snapshots" in assets or not assets else {},
                instance=self.platform.instance,
                partition_key=window,
                asset_selection=[dg.AssetKey(name) for name in assets] or None,
                raise_on_error=False,
            )
            .run_id
        )

    def declare_failed(self, why: str) -> str:
        """A run of health_job that ends without having run; its id."""
        job = self.platform.definitions.resolve_job_def("health_job")
        run = self.platform.instance.create_run_for_job(job)
        self.platform.instance.report_run_failed(run, why)
        return run.run_id


@pytest.fixture
def ticks(platform: Platform) -> Ticks:
    return Ticks(platform)


def test_a_failed_run_is_reported_once_and_so_is_the_next_that_succeeds(ticks: Ticks) -> None:
    before = ticks.cursor
    first = ticks.run(broken, fails=True)
    assert ticks.notified() == f"Run of {JOB} failed in run {first}: ValueError: the sky fell"
    assert ticks.notified() == NOTHING
    last = ticks.run(broken, fails=False)
    assert ticks.notified() == f"Run of {JOB} succeeds again, in run {last}."
    # A daemon that died before it kept the sensor's position sees the same again.
    ticks.cursor = before
    assert ticks.notified() == NOTHING


def test_a_run_that_something_else_declared_failed_is_reported_once(ticks: Ticks) -> None:
    first = ticks.declare_failed("Its machine is gone.")
    assert ticks.notified() == f"Run of health_job failed in run {first}: Its machine is gone."
    ticks.declare_failed("Its machine is gone.")
    assert ticks.notified() == NOTHING


def test_a_failed_check_of_a_run_that_succeeded_is_reported_with_its_end(ticks: Ticks) -> None:
    first = ticks.run(measured, fails=True)
    assert ticks.notified() == (
        f"Check plausible on measured did not pass in run {first}: Too warm."
    )
    assert ticks.notified() == NOTHING
    last = ticks.run(measured, fails=False)
    assert ticks.notified() == f"Check plausible on measured passes again in run {last}: As ever."


@pytest.mark.parametrize("passes", [False, True], ids=["as failed", "as passed"])
def test_an_undecided_check_is_neither_notified_nor_resolved(ticks: Ticks, passes: bool) -> None:
    ticks.run(measured, fails=not passes, unsure=True)
    assert ticks.notified() == NOTHING
    ticks.run(measured, fails=True)
    assert "Check plausible on measured did not pass" in ticks.notified()
    ticks.run(measured, fails=not passes, unsure=True)
    assert ticks.notified() == NOTHING
    ticks.run(measured, fails=False)
    assert "Check plausible on measured passes again" in ticks.notified()


def test_a_run_of_some_assets_does_not_make_up_for_the_others(ticks: Ticks) -> None:
    key = f"Run of windows_job of {WINDOW.key}"
    first = ticks.run_some(fails=True)
    assert ticks.notified() == f"{key} failed in run {first}: ValueError: the disk is full"
    ticks.run_some("reported", fails=False)
    assert ticks.notified() == NOTHING
    last = ticks.run_some("snapshots", fails=False)
    assert ticks.notified() == f"{key} succeeds again, in run {last}."


def test_a_run_of_all_assets_makes_up_for_one_of_some(ticks: Ticks) -> None:
    ticks.run_some("snapshots", fails=True)
    ticks.notified()
    ticks.run_some(fails=False, window=LATER.key)
    assert ticks.notified() == NOTHING
    last = ticks.run_some(fails=False)
    assert ticks.notified() == f"Run of windows_job of {WINDOW.key} succeeds again, in run {last}."


def test_a_check_is_well_again_when_its_newest_window_in_trouble_or_a_later_one_passes(
    ticks: Ticks,
) -> None:
    ticks.run(judged, fails=True, window=LATER.key)
    assert f"Check fair on judged of {LATER.key} did not pass" in ticks.notified()
    ticks.run(judged, fails=True, window=WINDOW.key)
    ticks.run(judged, fails=False, window=WINDOW.key)
    assert ticks.notified() == NOTHING
    ticks.run(judged, fails=False, window=LATER.key)
    assert f"Check fair on judged of {LATER.key} passes again" in ticks.notified()


def test_what_ended_before_the_first_tick_is_history(platform: Platform) -> None:
    Ticks(platform).declare_failed("Its machine is gone.")
    assert Ticks(platform).notified() == NOTHING


def test_a_user_error_is_reported_by_its_sentence(ticks: Ticks) -> None:
    ticks.platform.run("training_job", {"raw_penguins": {"uri": "nowhere.csv"}})
    text = ticks.notified()
    assert "There is no data at nowhere.csv" in text
    assert "Check contract on raw_penguins did not pass" in text


def test_a_channel_that_does_not_answer_is_reported_without_its_address(ticks: Ticks) -> None:
    history = ticks.platform.settings.history
    ticks.resources["alerts"] = Alerts(uri=history, services=f"json://127.0.0.1:1/{SECRET}")
    run = ticks.declare_failed("Its machine is gone.")
    text = ticks.notified()
    assert f"failed in run {run}" in text
    assert "Not yet delivered to JSON: 1 (A Connection error occurred sending JSON" in text
    assert SECRET not in text
    assert "Not yet delivered to JSON: 1" in ticks.notified()


class Watched:
    """A sensor as the daemon remembers it."""

    def __init__(self, instance: dg.DagsterInstance, name: str, module: str = "any") -> None:
        place = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=module), module)
        self.state = InstigatorState(
            RemoteRepositoryOrigin(place, "__repository__").get_instigator_origin(name),
            InstigatorType.SENSOR,
            InstigatorStatus.DECLARED_IN_CODE,
            SensorInstigatorData(),
        )
        self.instance = instance
        self.ticks = 0
        instance.add_instigator_state(self.state)

    def tick(self, status: TickStatus, error: str = "", time: float = 1000.0) -> None:
        self.ticks += 1
        self.instance.create_tick(
            TickData(
                self.state.instigator_origin_id,
                self.state.name,
                InstigatorType.SENSOR,
                status,
                timestamp=time + self.ticks,
                error=SerializableErrorInfo(error, [], "Error") if error else None,
                selector_id=self.state.selector_id,
            )
        )

    def turn_off(self) -> None:
        self.instance.update_instigator_state(self.state.with_status(InstigatorStatus.STOPPED))


def test_a_sensor_that_fails_is_reported_once_until_it_works_again(ticks: Ticks) -> None:
    sensor = Watched(ticks.platform.instance, "new_captures_sensor")
    sensor.tick(TickStatus.FAILURE, "The store is unavailable.\n")
    assert ticks.notified() == "Sensor new_captures_sensor fails: The store is unavailable."
    sensor.tick(TickStatus.FAILURE, "The store is unavailable.\n")
    sensor.tick(TickStatus.STARTED)
    assert ticks.notified() == NOTHING
    sensor.tick(TickStatus.SKIPPED)
    assert ticks.notified() == "Sensor new_captures_sensor works again."


def test_the_failures_of_one_backfill_are_one_alert_with_the_cause(ticks: Ticks) -> None:
    windows = [Window(WINDOW.start - timedelta(hours=hours)).key for hours in range(5)]
    for window in windows:
        ticks.run_some(fails=True, window=window)
    text = ticks.notified()
    assert text.startswith(f"Run of windows_job of {windows[0]} failed in run ")
    assert text.endswith("ValueError: the disk is full (4 more alike).")
    for window in windows[1:]:
        ticks.run_some(fails=False, window=window)
    assert ticks.notified() == NOTHING
    last = ticks.run_some(fails=False, window=windows[0])
    assert (
        ticks.notified()
        == f"Run of windows_job of {windows[0]} succeeds again, in run {last} (4 more alike)."
    )


def test_what_kept_a_run_from_beginning_is_reported(ticks: Ticks) -> None:
    """As Dagster ends a run whose code location it does not know."""
    instance = ticks.platform.instance
    run = instance.create_run_for_job(ticks.platform.definitions.resolve_job_def("health_job"))
    error = SerializableErrorInfo("Location elsewhere does not exist in workspace\n", [], "E")
    instance.report_engine_event("Dropped.", run, EngineEventData.engine_error(error))
    instance.report_run_failed(run)
    assert ticks.notified() == (
        f"Run of health_job failed in run {run.run_id}: Location elsewhere does not exist in "
        "workspace"
    )


def test_a_sensor_that_is_turned_off_fails_no_more(ticks: Ticks) -> None:
    sensor = Watched(ticks.platform.instance, "new_captures_sensor")
    sensor.tick(TickStatus.FAILURE, "The store is unavailable.")
    ticks.notified()
    sensor.turn_off()
    assert ticks.notified() == "Sensor new_captures_sensor was turned off."


def test_a_sensor_that_is_loaded_from_elsewhere_since_is_the_one_that_counts(ticks: Ticks) -> None:
    newer = Watched(ticks.platform.instance, "new_captures_sensor", "here")
    newer.tick(TickStatus.SKIPPED, time=2000.0)
    older = Watched(ticks.platform.instance, "new_captures_sensor", "elsewhere")
    older.tick(TickStatus.FAILURE, "The store is unavailable.")
    assert ticks.notified() == NOTHING


def test_a_sensor_that_is_no_more_is_none_of_our_business(ticks: Ticks) -> None:
    Watched(ticks.platform.instance, "old_sensor").tick(TickStatus.FAILURE, "Gone.")
    assert ticks.notified() == NOTHING


def test_promotions_that_fail_or_wait_for_a_human_are_reported(ticks: Ticks) -> None:
    ledger = open_ledger(ticks.platform.settings.history)

    def step(step: Step, reason: str) -> None:
        ledger.append(Entry("e1", utc_now(), step, "7", "somebody", reason, {"champion": "1"}))

    step(Step.REQUESTED, "Drift is confirmed.")
    assert ticks.notified() == NOTHING
    step(Step.APPROVAL_AWAITED, "training needs approval.")
    assert "version 7 (rollout e1): approval awaited, training needs approval" in ticks.notified()
    step(Step.APPROVED, "looks good.")
    assert "approved, looks good" in ticks.notified()
    step(Step.FAILED, "no label.")
    assert "failed, no label" in ticks.notified()
    assert ticks.notified() == NOTHING
    ledger.close()
