"""The endpoint: a version serves only after it has answered, and the alias follows what serves."""

import socket
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mlschool_dagster.defs.serving.endpoint import POOL
from mlschool_dagster.deployment.endpoint import State, VersionFiles
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.defs.versions import register_again, spoil
from mlschool_dagster_tests.platform import Platform, checks, materialized, metadata, sentence
from mlschool_dagster_tests.serving.tiny_model import ROW


def test_the_first_deployment_serves_the_challenger_and_makes_it_champion(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    result = trained_platform.run("deployment_job")
    assert result.success
    with trained_platform.store() as store:
        assert store.windows() == {}, "a probe is no traffic"
    assert checks(result)["smoke_test"].passed
    assert trained_platform.registry().aliases("1") == ["champion"]
    shown = metadata(result, "endpoint")
    status = target.status()
    assert status.since is not None
    assert (shown["version"], shown["version_before"]) == ("1", "none")
    assert (shown["url"], shown["since"]) == (status.url, status.since.timestamp())
    assert shown["pid"] == status.details["pid"]
    assert Path(shown["log"]).exists()
    assert (shown["canary"], shown["shadow"], shown["sampling_share"]) == ("none", "none", 1.0)
    assert target.invoke([ROW])[0].model_version == "1"


def test_a_second_version_takes_over_in_the_same_process(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    first = metadata(trained_platform.run("deployment_job"), "endpoint")
    version = register_again(trained_platform)
    assert trained_platform.run("deployment_job").success
    assert target.invoke([ROW])[0].model_version == "1"
    result = trained_platform.run("deployment_job", {"endpoint": {"version": "challenger"}})
    second = metadata(result, "endpoint")
    assert (second["version"], second["version_before"]) == (version, "1")
    assert second["pid"] == first["pid"]
    assert target.invoke([ROW])[0].model_version == version
    assert trained_platform.registry().aliases(version) == ["champion"]
    assert trained_platform.registry().aliases("1") == []


def test_a_canary_and_a_shadow_serve_beside_the_champion(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    canary, shadow = register_again(trained_platform), register_again(trained_platform)
    config = {"canary": canary, "canary_share": 1.0, "shadow": shadow, "sampling_share": 0.5}
    result = trained_platform.run("deployment_job", {"endpoint": config})
    assert result.success
    shown = metadata(result, "endpoint")
    assert (shown["version"], shown["canary"], shown["shadow"]) == ("1", canary, shadow)
    assert (shown["canary_share"], shown["sampling_share"]) == (1.0, 0.5)
    answers: Any = checks(result)["smoke_test"].metadata["answers"].value
    assert {row.data["version"] for row in answers.records} == {canary, shadow}
    assert target.invoke([ROW])[0].model_version == canary
    assert trained_platform.registry().aliases("1") == ["champion"]


def test_a_canary_that_fails_its_smoke_test_takes_no_request(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    canary = register_again(trained_platform)
    spoil(trained_platform, canary)
    config = {"canary": canary, "canary_share": 1.0}
    result = trained_platform.run("deployment_job", {"endpoint": config})
    assert f"Version {canary} failed its smoke test" in sentence(result)
    assert not checks(result)["smoke_test"].passed
    assert target.invoke([ROW])[0].model_version == "1"


def test_a_version_is_no_canary_of_itself(trained_platform: Platform) -> None:
    result = trained_platform.run("deployment_job", {"endpoint": {"canary": "1"}})
    assert sentence(result) == ("Version 1 cannot be the canary of itself; name another version.")


@pytest.mark.slow
def test_a_version_that_fails_its_smoke_test_leaves_all_as_it_was(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    version = register_again(trained_platform)
    spoil(trained_platform, version)
    result = trained_platform.run("deployment_job", {"endpoint": {"version": version}})
    assert "failed its smoke test (3 of 3 samples are not answered" in sentence(result)
    assert not checks(result)["smoke_test"].passed
    assert materialized(result) == set()
    assert target.invoke([ROW])[0].model_version == "1"
    assert trained_platform.registry().aliases("1") == ["champion"]
    assert trained_platform.registry().aliases(version) == ["challenger"]


@pytest.mark.slow
def test_a_first_version_that_fails_its_smoke_test_does_not_serve(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    spoil(trained_platform, "1")
    result = trained_platform.run("deployment_job")
    assert "failed its smoke test" in sentence(result)
    assert target.status().serving is None
    assert trained_platform.registry().aliases("1") == ["challenger"]


@pytest.mark.slow
def test_a_version_whose_files_are_damaged_leaves_all_as_it_was(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    version = register_again(trained_platform)
    folder = trained_platform.registry().fetch(version, trained_platform.home / "versions")
    (folder / "compiled.npz").write_bytes(b"damaged")
    result = trained_platform.run("deployment_job", {"endpoint": {"version": version}})
    assert "is damaged" in sentence(result)
    assert target.invoke([ROW])[0].model_version == "1"
    assert trained_platform.registry().aliases("1") == ["champion"]


def test_an_unknown_version_is_reported_with_those_that_exist(trained_platform: Platform) -> None:
    result = trained_platform.run("deployment_job", {"endpoint": {"version": "7"}})
    assert sentence(result) == (
        "Model penguins has no version '7'; choose among 1, challenger (version 1)."
    )


def test_a_deployment_before_any_training_says_what_to_run(platform: Platform) -> None:
    result = platform.run("deployment_job")
    assert "none is registered yet: run the training job" in sentence(result)


def test_the_runs_that_change_the_endpoint_take_turns(platform: Platform) -> None:
    """By a pool of Dagster's, which holds one run in every instance that the project sets up."""
    for job in ("deployment_job", "rollback_job", "teardown_job"):
        nodes = platform.definitions.resolve_job_def(job).nodes
        assert POOL in {pool for node in nodes for pool in node.definition.pools}, job
    for file in (ROOT / "dagster.yaml", ROOT / "infra" / "docker" / "dagster.yaml"):
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert document["concurrency"]["pools"] == {"default_limit": 1, "granularity": "run"}


def test_a_teardown_stops_the_endpoint_and_leaves_the_captures(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    target.invoke([ROW])
    assert trained_platform.run("teardown_job", {"teardown": {"reason": "too dear"}}).success
    status = target.status()
    assert (status.state, status.serving, status.desired) == (State.ABSENT, None, None)
    with trained_platform.store() as store:
        assert sum(store.windows().values()) == 1
    result = trained_platform.run("deployment_job")
    assert result.success
    changes = [row.data for row in metadata(result, "deployment_ledger")["changes"].records]
    assert [(change["action"], change["why"]) for change in changes] == [
        ("deployed", ""),
        ("withdrawn", "too dear"),
        ("deployed", ""),
    ]
    assert target.invoke([ROW])[0].model_version == "1"


def test_a_run_that_deploys_past_the_platform_is_noticed(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    version = register_again(trained_platform)
    folder = trained_platform.registry().fetch(version, trained_platform.home / "versions")
    target.deploy(Plan(primary=version), {version: VersionFiles.of(folder)})
    result = trained_platform.run("health_job")
    check = checks(result)["as_deployed"]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert "somebody changed it without the platform" in (check.description or "")
    again = trained_platform.run("health_job")
    assert checks(again)["as_deployed"].passed
    shown = metadata(trained_platform.run("deployment_job"), "deployment_ledger")
    assert shown["versions_served"] == 2.0


def test_what_a_deployment_would_fail_on_is_reported_before_one(platform: Platform) -> None:
    assert platform.run("preflight_job").success
    with socket.create_server(("127.0.0.1", platform.settings.endpoint_port)):
        result = platform.run("preflight_job")
    assert f"Port {platform.settings.endpoint_port}" in sentence(result)
    assert "MLSCHOOL_ENDPOINT_PORT" in sentence(result)
