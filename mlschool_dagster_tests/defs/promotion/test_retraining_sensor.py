"""The retraining sensor: one challenger at a time, when the champion got worse."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster_tests.defs.promotion.sensor_driver import Sensor, append, last, serves, steps
from mlschool_dagster_tests.platform import Platform, sentence

APPROVAL = {"by": "Ada", "reason": "the figures hold"}


@pytest.fixture
def sensor(platform: Platform) -> Sensor:
    """The sensor of a platform whose version 1 has served for a day."""
    serves(platform, "1", hours_ago=24)
    return Sensor(platform, "retraining_sensor")


@pytest.fixture
def cautious(platform: Platform) -> Sensor:
    """The same, where a human must approve of the retraining."""
    serves(platform, "1", hours_ago=24)
    policy = PromotionPolicy(approvals=["retraining"])
    definitions = build_definitions(promotion_policy=policy)
    return Sensor(replace(platform, definitions=definitions), "retraining_sensor")


def degrade(platform: Platform, version: str = "1", hours: Sequence[int] = (3, 2)) -> None:
    """Have monitoring find the accuracy of `version` too low in the windows `hours` ago."""
    history = MetricsHistory(platform.settings.history)
    for ago in hours:
        window = Window.of(utc_now() - timedelta(hours=ago))
        name = MetricName.REALISED_ACCURACY
        metric = Metric(window, name, 0.5, 200, version=version, threshold=0.7, finding=True)
        history.record(window, "performance_report", [metric])
    history.close()


def test_where_nothing_serves_nothing_gets_worse(platform: Platform) -> None:
    sensor = Sensor(platform, "retraining_sensor")
    assert sensor.tick() == []
    assert sensor.skip_reason == "Nothing serves, so that nothing can degrade."


def test_a_champion_that_does_well_is_left_alone(sensor: Sensor) -> None:
    assert sensor.tick() == []
    assert sensor.skip_reason == "No degradation is confirmed."


def test_a_degradation_has_a_challenger_trained(sensor: Sensor) -> None:
    degrade(sensor.platform)
    (request,) = sensor.tick()
    asked = last(sensor.platform)
    assert asked.step is Step.REQUESTED
    assert asked.reason.startswith("Degradation is confirmed: realised accuracy in ")
    assert request.job_name == "retraining_job"
    assert request.tags["mlschool/rollout"] == asked.rollout
    assert sensor.created(request, dg.DagsterRunStatus.STARTED)
    assert sensor.tick() == []
    assert sensor.skip_reason == "The training is under way."


def test_what_an_earlier_version_did_does_not_count(sensor: Sensor) -> None:
    degrade(sensor.platform)
    serves(sensor.platform, "2")
    assert sensor.tick() == []
    assert sensor.skip_reason == "No degradation is confirmed."


def test_a_request_that_was_lost_is_made_again_by_the_same_key(sensor: Sensor) -> None:
    degrade(sensor.platform)
    (lost,), (again,) = sensor.lose(), sensor.tick()
    assert (lost.run_key, lost.tags) == (again.run_key, again.tags)
    assert steps(sensor.platform) == [Step.REQUESTED]


def test_a_training_that_fails_is_tried_again_and_given_up_in_the_end(sensor: Sensor) -> None:
    degrade(sensor.platform)
    keys = set()
    for _ in range(3):
        (request,) = sensor.tick()
        keys.add(request.run_key)
        sensor.created(request, dg.DagsterRunStatus.FAILURE)
    assert len(keys) == 3
    assert sensor.tick() == []
    assert steps(sensor.platform) == [Step.REQUESTED, Step.FAILED]
    assert sensor.tick() == []
    assert "its cool-down lasts until" in sensor.skip_reason


def test_a_training_waits_for_a_human_if_it_must(cautious: Sensor) -> None:
    degrade(cautious.platform)
    assert cautious.tick() == []
    assert "The retraining waits for approval. Run approval_job for rollout" in cautious.skip_reason
    answer = {"approval": {"decision": "APPROVE", **APPROVAL}}
    assert cautious.platform.run("approval_job", answer).success
    entry = last(cautious.platform)
    assert (entry.step, entry.by, entry.reason) == (Step.APPROVED, "Ada", "the figures hold")
    assert entry.details["gate"] == "retraining"
    (request,) = cautious.tick()
    assert request.job_name == "retraining_job"


def test_while_a_challenger_is_led_on_no_other_is_trained(sensor: Sensor) -> None:
    degrade(sensor.platform)
    sensor.tick()
    asked = last(sensor.platform)
    found = {"better": True, "champion": "1"}
    compared = replace(asked, step=Step.COMPARED, version="2", by="run", details=found)
    append(sensor.platform, compared)
    assert sensor.tick() == []
    assert sensor.skip_reason == f"Rollout {asked.rollout} is under way: compared."


def test_who_declines_ends_the_rollout(cautious: Sensor) -> None:
    degrade(cautious.platform)
    cautious.tick()
    answer = {"approval": {"decision": "DECLINE", **APPROVAL}}
    assert cautious.platform.run("approval_job", answer).success
    assert cautious.tick() == []
    assert "its cool-down lasts until" in cautious.skip_reason


def test_an_answer_that_nothing_waits_for_is_refused(platform: Platform) -> None:
    answer = {"decision": "APPROVE", **APPROVAL}
    assert sentence(platform.run("approval_job", {"approval": answer})) == (
        "No rollout waits for approval; see the asset promotion_ledger for what does."
    )
    named = {**answer, "rollout": "other"}
    assert "Rollout other does not wait" in sentence(
        platform.run("approval_job", {"approval": named})
    )
