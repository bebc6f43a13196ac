"""The closed loop's assets: their metadata of evidence and steps."""

from datetime import timedelta

from mlschool_dagster.clock import utc_now
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster_tests.defs.promotion.sensor_driver import append
from mlschool_dagster_tests.platform import Platform, metadata, sentence

LEDGER = "promotion_ledger_job"


def test_an_empty_ledger_is_shown_as_that(platform: Platform) -> None:
    shown = metadata(platform.run(LEDGER), "promotion_ledger")
    assert shown["dagster/row_count"] == 0
    assert (shown["rollouts"], shown["open"]) == (0.0, 0.0)
    assert shown["steps"] == "no rows"


def test_steps_are_shown_newest_first_with_who_and_why(trained_platform: Platform) -> None:
    began = utc_now() - timedelta(hours=1)
    run_id = "0f0e0d0c-0000-4000-8000-000000000001"
    asked = {"champion": "1", "windows": [], "signals": []}
    append(trained_platform, Entry("a", began, Step.REQUESTED, "", "sensor", "Worse.", asked))
    details = {"better": False, "difference": 0.25}
    append(trained_platform, Entry("a", began, Step.COMPARED, "1", run_id, "It is equal.", details))
    append(trained_platform, Entry("a", utc_now(), Step.REJECTED, "1", "sensor", "Not better."))
    shown = metadata(trained_platform.run(LEDGER), "promotion_ledger")
    rejected, compared, requested = (row.data for row in shown["steps"].records)
    assert [row["step"] for row in (requested, compared, rejected)] == [
        *("requested", "compared", "rejected")
    ]
    assert (compared["who"], compared["why"]) == (run_id[:8], "It is equal.")
    (rollout,) = (row.data for row in shown["promotions"].records)
    assert (rollout["champion"], rollout["state"]) == ("1", "rejected")
    assert rollout["because"] == "Worse."
    (figure,) = (row.data for row in shown["figures"].records)
    assert (figure["figure"], figure["value"]) == ("difference", 0.25)
    assert "versions/1" in shown["version_1"]
    tags = trained_platform.registry().resolve("1").tags
    assert (tags["rollout"], tags["decision"], tags["decision_by"]) == ("a", "rejected", "sensor")


def test_without_a_canary_there_is_no_evidence(platform: Platform) -> None:
    message = sentence(platform.run("canary_evidence_job"))
    assert message.startswith("No open rollout has a canary")
