"""The promotion sensor: a challenger is led to its end, whatever dies in between."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.promotion.promotion_ledger import promotion_ledger_job
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.local.platform import local_endpoint
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.paired_evaluation import ReplayedVersion
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster_tests.defs.promotion.sensor_driver import (
    Sensor,
    append,
    last,
    move_clock,
    serves,
    steps,
)
from mlschool_dagster_tests.defs.versions import register_again
from mlschool_dagster_tests.platform import Platform, metadata, traffic, truth
from mlschool_dagster_tests.serving.tiny_model import ROW

ROLLOUT = "20261120-120000-abcd"


@pytest.fixture
def target(trained_platform: Platform) -> Iterator[LocalEndpoint]:
    target = local_endpoint(trained_platform.settings)
    yield target
    target.stop()


def compared(platform: Platform, challenger: str, *, better: bool = True) -> None:
    """A rollout whose challenger was compared with version 1."""
    now = utc_now()
    window = Window.of(now).key
    asked = {"champion": "1", "windows": [window], "signals": ["realised_accuracy"]}
    append(platform, Entry(ROLLOUT, now, Step.REQUESTED, "", "sensor", "It got worse.", asked))
    found = {"better": better, "champion": "1"}
    append(platform, Entry(ROLLOUT, now, Step.COMPARED, challenger, "run", "Better.", found))


def serve_both(platform: Platform, challenger: str, rows: int) -> None:
    """Captures of the present hour: `rows` answers of either version, those of version 1 labelled.

    Version 1 is right on half of them, and `challenger` would be right on all.
    """
    drawn = traffic(platform.registry().reference("1"), 2 * rows, Window.of(utc_now()))
    folder = platform.registry().fetch(challenger, platform.home / "versions")
    replayed = ReplayedVersion(challenger, folder).predict([capture.inputs for capture in drawn])
    moment = utc_now()
    for capture, prediction in zip(drawn, replayed.classes, strict=True):
        capture.captured_at, capture.prediction = moment, prediction
    answers, canary = drawn[:rows], drawn[rows:]
    labels = truth(answers)
    for capture, other in zip(answers[: rows // 2], truth(answers, right=False), strict=False):
        capture.prediction = other.label
    answered = [replace(c, model_version=challenger, role=Role.CANARY) for c in canary]
    with platform.store() as store:
        store.append([*answers, *answered])
        store.append_labels(labels)


def measured(platform: Platform, version: str, hours: int, accuracy: float) -> None:
    """What monitoring says of `version` in the window `hours` from now."""
    window = Window.of(utc_now() + timedelta(hours=hours))
    history = MetricsHistory(platform.settings.history)
    metric = Metric(window, MetricName.REALISED_ACCURACY, accuracy, 200, version=version)
    history.record(window, f"{version}", [metric])
    history.close()


@pytest.fixture
def sensor(platform: Platform) -> Sensor:
    """The sensor of a platform whose challenger, version 2, was compared with version 1."""
    serves(platform, "1", hours_ago=24)
    compared(platform, "2")
    return Sensor(platform, "promotion_sensor")


def moves(sensor: Sensor) -> list[dg.RunRequest]:
    """What a tick requests besides showing the ledger."""
    return [request for request in sensor.tick() if request.job_name != promotion_ledger_job.name]


def deployed(sensor: Sensor, primary: str, canary: str = "") -> None:
    """Have the sensor's one request carried out as a deployment of those versions."""
    (request,) = moves(sensor)
    wanted = request.run_config["ops"]["endpoint"]["config"]
    assert (wanted["version"], wanted.get("canary", "")) == (primary, canary)
    run = sensor.created(request, dg.DagsterRunStatus.SUCCESS)
    serves(sensor.platform, primary, canary, by=run.run_id)


def assert_recorded(sensor: Sensor, step: Step) -> None:
    """Have the rollout come to `step`, by whomever."""
    append(sensor.platform, Entry(ROLLOUT, utc_now(), step, "2", "somebody", "A reason."))


def test_without_a_rollout_there_is_nothing_to_do(platform: Platform) -> None:
    sensor = Sensor(platform, "promotion_sensor")
    assert sensor.tick() == []
    assert sensor.skip_reason == "No rollout is open."


def test_a_challenger_that_is_not_better_is_rejected(platform: Platform) -> None:
    compared(platform, "2", better=False)
    serves(platform, "1")
    assert moves(Sensor(platform, "promotion_sensor")) == []
    assert last(platform).step is Step.REJECTED


def test_a_training_is_not_its_to_request(platform: Platform) -> None:
    asked = {"champion": "1", "windows": []}
    entry = Entry(ROLLOUT, utc_now(), Step.REQUESTED, "", "sensor", "It got worse.", asked)
    append(platform, entry)
    sensor = Sensor(platform, "promotion_sensor")
    assert moves(sensor) == []
    assert sensor.tick() or sensor.skip_reason == "The training is not requested by this sensor."


def test_a_canary_that_fails_is_withdrawn(sensor: Sensor) -> None:
    deployed(sensor, "1", canary="2")
    (look,) = moves(sensor)
    assert look.job_name == "canary_evidence_job"
    assert_recorded(sensor, Step.CANARY_FAILED)
    deployed(sensor, "1")
    assert moves(sensor) == []
    assert last(sensor.platform).step is Step.ROLLED_BACK


def test_a_primary_that_fails_its_soak_is_rolled_back(sensor: Sensor) -> None:
    deployed(sensor, "1", canary="2")
    moves(sensor)
    assert_recorded(sensor, Step.CANARY_PASSED)
    deployed(sensor, "2")
    assert moves(sensor) == []
    assert last(sensor.platform).step is Step.PROMOTED
    assert_recorded(sensor, Step.SOAK_FAILED)
    (request,) = moves(sensor)
    assert request.job_name == "rollback_job"
    deployed(sensor, "1")
    moves(sensor)
    assert last(sensor.platform).step is Step.ROLLED_BACK


def test_a_deployment_that_was_done_but_not_recorded_is_not_done_again(sensor: Sensor) -> None:
    deployed(sensor, "1", canary="2")
    sensor.cursor = None
    assert [request.job_name for request in moves(sensor)] == ["canary_evidence_job"]
    assert steps(sensor.platform)[-1] is Step.CANARY


def test_a_deployment_by_hand_ends_the_rollout(sensor: Sensor) -> None:
    deployed(sensor, "1", canary="2")
    moves(sensor)
    serves(sensor.platform, "7")
    assert moves(sensor) == []
    ended = last(sensor.platform)
    assert ended.step is Step.SUPERSEDED
    assert ended.reason == "Somebody else deployed version 7 (a reason)."


def test_an_endpoint_that_fails_requests_takes_the_canary_back(sensor: Sensor) -> None:
    deployed(sensor, "1", canary="2")
    moves(sensor)
    for errors in (0.0, 90.0, 90.0):
        look = dg.AssetObservation(
            "endpoint_health", metadata={"canary": "2", "requests": 1000.0, "errors": errors}
        )
        sensor.platform.instance.report_runless_asset_event(look)
    deployed(sensor, "1")
    assert steps(sensor.platform)[-1] is Step.CANARY_FAILED
    reason = "The endpoint failed to answer 180 of 2000 requests."
    assert last(sensor.platform).reason == reason


def test_the_ledger_is_shown_once_after_each_change(sensor: Sensor) -> None:
    def shown() -> list[dg.RunRequest]:
        job = promotion_ledger_job.name
        return [request for request in sensor.tick() if request.job_name == job]

    (first,) = shown()
    assert shown() == []
    assert_recorded(sensor, Step.FAILED)
    (second,) = shown()
    assert first.run_key != second.run_key


@pytest.mark.slow
def test_a_better_challenger_is_promoted_and_found_healthy(
    trained_platform: Platform,
    target: LocalEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = trained_platform
    assert platform.run("deployment_job").success
    challenger = register_again(platform)
    compared(platform, challenger)
    sensor = Sensor(platform, "promotion_sensor")

    assert [r.run_key for r in sensor.lose()] == [r.run_key for r in sensor.lose()]
    canary, shown = sensor.tick()
    assert (canary.job_name, shown.job_name) == ("deployment_job", promotion_ledger_job.name)
    assert sensor.carry_out(canary).success
    assert sensor.carry_out(shown).success
    plan = target.status().serving
    assert plan is not None
    assert (plan.primary, plan.canary, plan.shadow) == ("1", challenger, None)

    look, shown = sensor.tick()
    assert last(platform).step is Step.CANARY
    serve_both(platform, challenger, 150)
    result = sensor.carry_out(look)
    assert result.success
    evidence = metadata(result, "canary_evidence")
    assert (evidence["champion_rows"], evidence["canary_rows"]) == (150, 150)
    assert (evidence["pairs"], evidence["labelled"]) == (300, 150)
    assert (evidence["gained"], evidence["lost"]) == (75, 0)
    assert evidence["realised_difference"] == pytest.approx(0.5)

    promotion, shown = sensor.tick()
    assert last(platform).step is Step.CANARY_PASSED
    assert last(platform).details["gained"] == 75
    assert sensor.carry_out(promotion).success
    assert target.invoke([ROW])[0].model_version == challenger
    assert platform.registry().aliases(challenger) == ["champion"]

    sensor.tick()
    assert last(platform).step is Step.PROMOTED
    for hours in range(3):
        measured(platform, challenger, hours, 0.95)
    assert sensor.tick() == []
    assert "0 of 3 windows since the promotion have a verdict" in sensor.skip_reason
    move_clock(monkeypatch, tmp_path, timedelta(hours=3))
    (shown,) = sensor.tick()
    assert last(platform).step is Step.HEALTHY
    result = sensor.carry_out(shown)
    board = metadata(result, "promotion_ledger")
    assert (board["rollouts"], board["healthy"], board["open"]) == (1.0, 1.0, 0.0)
    assert [row.data["step"] for row in board["steps"].records][::-1] == [
        *("requested", "compared", "canary", "canary passed", "promoted", "healthy")
    ]
    tags = platform.registry().resolve(challenger).tags
    assert (tags["rollout"], tags["decision"]) == (ROLLOUT, "healthy")
