"""Health: what the endpoint did lately is seen, and an endpoint that is down is no crash."""

from typing import Any

import dagster as dg
import pytest

from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.errors import RefusedError
from mlschool_dagster_tests.platform import Platform, checks, undecided
from mlschool_dagster_tests.serving.tiny_model import ROW


def look(platform: Platform, **config: float) -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    """What is observed, by the name of the metadata."""
    result = platform.run("health_job", {"endpoint_health": config})
    assert result.success
    (event,) = result.get_asset_observation_events()
    observation = event.asset_observation_data.asset_observation
    return result, {name: value.value for name, value in observation.metadata.items()}


def test_an_endpoint_that_was_never_deployed_is_neither_up_nor_missed(platform: Platform) -> None:
    result, seen = look(platform)
    assert seen["up"] == 0.0
    assert checks(result)["up"].passed
    assert checks(result)["up"].description == "The endpoint has not been deployed yet."
    assert undecided(result) == {"as_deployed", "error_share", "latency"}


def test_what_happened_since_the_last_look_is_seen(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    _, first = look(trained_platform)
    assert (first["up"], first["version"], first["workers"]) == (1.0, "1", 1.0)
    for _ in range(20):
        target.invoke([ROW])
    with pytest.raises(RefusedError):
        target.invoke([{**ROW, "body_mass_g": -1}])
    result, seen = look(trained_platform)
    assert (seen["requests"], seen["refused"], seen["errors"]) == (21.0, 1.0, 0.0)
    assert 0 < seen["latency_p50"] <= seen["latency_p95"] <= seen["latency_p99"] < 5
    assert 10e6 < seen["memory_bytes"] < 1e9
    assert (seen["spill_bytes"], seen["error_share"]) == (0.0, 0.0)
    assert all(check.passed for check in checks(result).values())
    assert undecided(result) == set()
    result, idle = look(trained_platform)
    assert idle["requests"] == 0.0
    assert "latency_p99" not in idle
    assert checks(result)["latency"].description == "There was no request."
    assert undecided(result) == {"error_share", "latency"}
    target.invoke([ROW])
    result, _ = look(trained_platform, maximum_p99_seconds=1e-6)
    assert not checks(result)["latency"].passed


def test_an_endpoint_that_is_down_is_an_observation_and_a_failed_check(
    trained_platform: Platform, target: LocalEndpoint
) -> None:
    assert trained_platform.run("deployment_job").success
    target.invoke([ROW])
    _, before = look(trained_platform)
    target.stop()
    result, seen = look(trained_platform)
    assert seen["up"] == 0.0
    assert not checks(result)["up"].passed
    assert checks(result)["up"].severity is dg.AssetCheckSeverity.ERROR
    assert seen["until"] == before["until"]
    assert trained_platform.run("deployment_job").success
    _, again = look(trained_platform)
    assert again["up"] == 1.0
