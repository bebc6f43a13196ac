"""Roll-back and ledger: one command makes the previous version serve again, and is recorded."""

import subprocess
import sys
from typing import Any

import pytest

from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.defs.versions import register_again
from mlschool_dagster_tests.platform import Platform, materialized, metadata, sentence
from mlschool_dagster_tests.serving.tiny_model import ROW


def changes(result: Any) -> list[dict[str, Any]]:
    return [row.data for row in metadata(result, "deployment_ledger")["changes"].records]


def test_the_ledger_records_who_deployed_what_when_and_why(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    config = {"endpoint": {"version": "1", "reason": "the first"}}
    result = trained_platform.run("deployment_job", config)
    (deployed,) = changes(result)
    assert (deployed["action"], deployed["from"], deployed["to"]) == ("deployed", "", "1")
    assert (deployed["who"], deployed["why"]) == (result.run_id[:8], "the first")
    shown = metadata(result, "deployment_ledger")
    (term,) = (row.data for row in shown["served"].records)
    assert (term["version"], term["until"]) == ("1", "now")
    assert (shown["versions_served"], shown["rolled_back"]) == (1.0, 0.0)


def test_a_roll_back_restores_the_primary_before_and_drops_the_canary(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    version = register_again(trained_platform)
    config = {"version": version, "canary": "1", "shadow": "1", "sampling_share": 0.5}
    assert trained_platform.run("deployment_job", {"endpoint": config}).success
    result = trained_platform.run("rollback_job")
    assert result.success
    assert materialized(result) == {"endpoint", "deployment_ledger"}
    shown = metadata(result, "endpoint")
    assert (shown["version"], shown["version_before"]) == ("1", version)
    assert (shown["canary"], shown["shadow"]) == ("none", "none")
    assert shown["sampling_share"] == 0.5
    assert target.invoke([ROW])[0].model_version == "1"
    assert trained_platform.registry().aliases("1") == ["champion"]
    newest = next(change for change in changes(result) if change["role"] == "primary")
    assert (newest["action"], newest["from"], newest["to"]) == ("rolled back", version, "1")
    assert newest["why"] == "roll back"
    assert metadata(result, "deployment_ledger")["rolled_back"] == 1.0


def test_without_a_primary_before_there_is_nothing_to_roll_back_to(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    result = trained_platform.run("rollback_job")
    assert "there is nothing to roll back to; deploy a version by its number." in sentence(result)
    assert target.invoke([ROW])[0].model_version == "1"


@pytest.mark.slow
def test_one_command_without_configuration_rolls_back(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    version = register_again(trained_platform)
    assert trained_platform.run("deployment_job", {"endpoint": {"version": version}}).success
    command = "-m dagster job execute -m mlschool_dagster.definitions -j rollback_job"
    subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=trained_platform.subprocess_environment(),
        check=True,
        capture_output=True,
    )
    assert target.invoke([ROW])[0].model_version == "1"
