"""The compose file's platform, rehearsed from an empty database to a first answer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster_tests.infra.rehearsal import Rehearsal
from mlschool_dagster_tests.serving.tiny_model import ROW

SECRETS = {
    name: f"only-for-tests-{name.lower()}"
    for name in (
        "POSTGRES_PASSWORD",
        "DAGSTER_POSTGRES_PASSWORD",
        "MLFLOW_POSTGRES_PASSWORD",
        "CAPTURES_POSTGRES_PASSWORD",
        "ENDPOINT_POSTGRES_PASSWORD",
        "HISTORY_POSTGRES_PASSWORD",
        "GRAFANA_POSTGRES_PASSWORD",
        "GRAFANA_ADMIN_PASSWORD",
        "MLSCHOOL_ENDPOINT_TOKEN",
    )
}
LAUNCH = """
mutation Launch($job: String!, $config: RunConfigData!) {
  launchRun(executionParams: {selector: {
    repositoryLocationName: "mlschool_dagster.definitions"
    repositoryName: "__repository__", jobName: $job
  }, runConfigData: $config}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
STATUS = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    # Not below pytest's own folder, which PostgreSQL's user may not enter.
    with (
        tempfile.TemporaryDirectory(prefix="rehearsal-") as folder,
        Rehearsal(Path(folder), SECRETS) as rehearsal,
    ):
        yield rehearsal


def run(rehearsal: Rehearsal, job: str, config: dict[str, Any]) -> str:
    """The status with which `job` ends, launched as the UI launches it."""

    def ask(query: str, **variables: Any) -> Any:
        document = {"query": query, "variables": variables}
        answer = httpx.post(rehearsal.url("3000", "/graphql"), json=document, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    launched = ask(LAUNCH, job=job, config=config)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    status = ""

    def has_ended() -> bool:
        nonlocal status
        status = ask(STATUS, run=launched["run"]["runId"])["runOrError"]["status"]
        return status in ("SUCCESS", "FAILURE", "CANCELED")

    rehearsal.wait_until(has_ended)
    return status


def test_the_platform_trains_deploys_and_answers(rehearsal: Rehearsal) -> None:
    rehearsal.start()
    assert run(rehearsal, "training_job", {}) == "SUCCESS"
    newest = {"ops": {"endpoint": {"config": {"version": "challenger"}}}}
    assert run(rehearsal, "deployment_job", newest) == "SUCCESS"
    token = {"Authorization": f"Bearer {SECRETS['MLSCHOOL_ENDPOINT_TOKEN']}"}
    invocations = rehearsal.url("8080", "/invocations")
    answer = httpx.post(invocations, json={"inputs": [ROW]}, headers=token)
    assert answer.status_code == 200
    assert answer.json()["model_version"] == "1"
    assert httpx.post(invocations, json={"inputs": [ROW]}).status_code == 401
    password = SECRETS["CAPTURES_POSTGRES_PASSWORD"]
    store = open_store(
        f"postgresql://captures:{password}@127.0.0.1:{rehearsal.ports['5432']}/captures"
    )
    assert [capture.inputs for capture in store.unlabelled()] == [ROW]
    store.close()
