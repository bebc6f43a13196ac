"""The compose file's platform, rehearsed from an empty database to a first answer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.local.containers import Dagster
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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    # Not below pytest's own folder, which PostgreSQL's user may not enter.
    with (
        tempfile.TemporaryDirectory(prefix="rehearsal-") as folder,
        Rehearsal(Path(folder), SECRETS) as rehearsal,
    ):
        yield rehearsal


def test_the_platform_trains_deploys_and_answers(rehearsal: Rehearsal) -> None:
    rehearsal.start()
    dagster = Dagster(rehearsal.url("3000"))
    dagster.run("training_job")
    dagster.run("deployment_job", {"ops": {"endpoint": {"config": {"version": "challenger"}}}})
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
