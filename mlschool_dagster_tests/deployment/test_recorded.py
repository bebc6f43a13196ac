"""Recorded deployments: the ledger agrees with what serves, whatever dies in between."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlschool_dagster.deployment.endpoint import Invoke
from mlschool_dagster.deployment.ledger import DeploymentEvent, open_ledger, serving_plan
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.deployment.recorded import RecordedEndpoint
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.deployment.local_endpoints import deploy, version_files
from mlschool_dagster_tests.serving.tiny_model import ROW

ONE, TWO = Plan(primary="1"), Plan(primary="2")


@pytest.fixture
def recorded(endpoint: LocalEndpoint, tmp_path: Path) -> Iterator[RecordedEndpoint]:
    uri = f"sqlite:///{tmp_path / 'history.db'}"
    with closing(open_ledger(uri, endpoint.name)) as ledger:
        yield RecordedEndpoint(endpoint, ledger)


def serve(recorded: RecordedEndpoint, home: Path, version: str) -> None:
    plan = Plan(primary=version)
    recorded.deploy(plan, version_files(home, version), by=f"run {version}", reason="because")


def events_of(recorded: RecordedEndpoint) -> list[tuple[str, str | None, str]]:
    return [
        (entry.event.value, entry.plan.primary if entry.plan else None, entry.by)
        for entry in recorded.ledger.entries()
    ]


def test_a_deployment_is_wanted_and_then_serves(recorded: RecordedEndpoint, tmp_path: Path) -> None:
    serve(recorded, tmp_path, "1")
    serve(recorded, tmp_path, "2")
    assert events_of(recorded) == [
        ("wanted", "1", "run 1"),
        ("serving", "1", "run 1"),
        ("wanted", "2", "run 2"),
        ("serving", "2", "run 2"),
    ]
    assert recorded.ledger.entries()[-1].at == recorded.endpoint.status().since
    assert recorded.observe() == (recorded.endpoint.status(), "")


def test_a_plan_that_does_not_fit_is_not_recorded(
    recorded: RecordedEndpoint, tmp_path: Path
) -> None:
    plan = Plan(primary="1", shadow="2", shadow_share=0.5)
    with pytest.raises(UserError, match="shadow share"):
        recorded.deploy(plan, version_files(tmp_path, "1", "2"), by="", reason="")
    assert events_of(recorded) == []


@pytest.mark.parametrize("served", [True, False])
def test_a_deployment_that_fails_is_recorded_with_its_cause(
    recorded: RecordedEndpoint, tmp_path: Path, served: bool
) -> None:
    if served:
        serve(recorded, tmp_path, "1")

    def verify(version: str, invoke: Invoke) -> None:
        raise UserError("It is wrong.\nVery.")

    with pytest.raises(UserError, match="It is wrong"):
        recorded.deploy(
            TWO, version_files(tmp_path, "2"), by="run 2", reason="because", verify=verify
        )
    last = recorded.ledger.entries()[-1]
    assert last.event is (DeploymentEvent.TAKEN_BACK if served else DeploymentEvent.FAILED)
    assert last.plan == (ONE if served else None)
    assert last.reason == f"{last.event.value.capitalize()}: It is wrong."
    assert recorded.observe()[1] == ""


@pytest.mark.parametrize("moment", ["endpoint.deploy", "ledger.append"])
@pytest.mark.slow
def test_a_run_that_dies_is_completed_by_the_next_one(
    recorded: RecordedEndpoint, tmp_path: Path, port: int, moment: str
) -> None:
    """It dies right before the endpoint is touched, or right before what serves is recorded."""
    serve(recorded, tmp_path, "1")
    code = f"""
import os, signal, sys
from contextlib import closing
from pathlib import Path
from mlschool_dagster.deployment.ledger import DeploymentLedger, open_ledger
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.deployment.recorded import RecordedEndpoint
from mlschool_dagster_tests.deployment.local_endpoints import endpoint_of, version_files
home = Path({str(tmp_path)!r})
append = DeploymentLedger.append
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def die_on_serving(self, entry):
    return die() if entry.event == "serving" else append(self, entry)
if {moment!r} == "endpoint.deploy":
    LocalEndpoint.deploy = die
else:
    DeploymentLedger.append = die_on_serving
ledger = open_ledger("sqlite:///" + str(home / "history.db"), "penguins")
recorded = RecordedEndpoint(endpoint_of(home, {port}), ledger)
recorded.deploy(Plan(primary="2"), version_files(home, "2"), by="dead run", reason="")
"""
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert events_of(recorded)[-1] == ("wanted", "2", "dead run")
    has_served = moment == "ledger.append"
    assert recorded.endpoint.invoke([ROW])[0].model_version == ("2" if has_served else "1")
    assert recorded.observe()[1] == ""
    assert serving_plan(recorded.ledger.entries()) == recorded.endpoint.status().serving
    if has_served:
        assert events_of(recorded)[-1] == ("serving", "2", "dead run")
    serve(recorded, tmp_path, "2")
    assert events_of(recorded)[-2:] == [("wanted", "2", "run 2"), ("serving", "2", "run 2")]


def test_what_somebody_else_deployed_is_observed_once(
    recorded: RecordedEndpoint, endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    serve(recorded, tmp_path, "1")
    deploy(endpoint, tmp_path, "2")
    status, difference = recorded.observe()
    assert status.serving == TWO
    assert difference.startswith("The endpoint serves version 2, where the deployment ledger has")
    assert events_of(recorded)[-1] == ("observed", "2", "")
    assert recorded.observe()[1] == ""
    assert len(events_of(recorded)) == 3


def test_an_endpoint_that_does_not_answer_is_no_change(
    recorded: RecordedEndpoint, endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    serve(recorded, tmp_path, "1")
    os.kill(int(endpoint.status().details["pid"]), signal.SIGTERM)
    endpoint.stop()
    status, difference = recorded.observe()
    assert (status.serving, status.desired, difference) == (None, ONE, "")
    assert len(events_of(recorded)) == 2


def test_an_endpoint_that_somebody_removed_is_observed(
    recorded: RecordedEndpoint, endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    serve(recorded, tmp_path, "1")
    endpoint.teardown()
    assert "serves nothing, where" in recorded.observe()[1]
    assert events_of(recorded)[-1] == ("observed", None, "")


def test_a_teardown_is_recorded_and_can_be_repeated(
    recorded: RecordedEndpoint, tmp_path: Path
) -> None:
    serve(recorded, tmp_path, "1")
    for _ in range(2):
        recorded.teardown(by="run 2", reason="too dear")
    assert events_of(recorded)[2:] == [("removed", None, "run 2")]
    assert recorded.observe()[1] == ""
