"""One MLflow run per asset: it ends as the asset ended, and nothing else ends up in it."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.asset_run import RUN_TAG
from mlschool_dagster.resources.tracking import MlflowTracking, without_credentials


def tracking(uri: str) -> MlflowTracking:
    folder = Path(uri.removeprefix("sqlite:///")).parent
    return MlflowTracking(tracking_uri=uri, experiment="tests", artifacts=str(folder / "artifacts"))


def runs(uri: str) -> dict[str, str]:
    """Status by name of every run in the experiment."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return {
        run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])
    }


@dg.asset
def succeeding(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> None:
    with mlflow.asset_run(context, "succeeding") as run:
        run.log_params({f"p{i}": i for i in range(250)})


@dg.asset(deps=[succeeding])
def failing(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> None:
    with mlflow.asset_run(context, "failing"):
        raise ValueError("training went wrong")


@dg.asset(deps=[succeeding])
def last(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> None:
    with mlflow.asset_run(context, "last") as run:
        run.log_metric("m", 1.0)


def multiprocess_job() -> dg.JobDefinition:
    uri = dg.EnvVar("TEST_TRACKING_URI").get_value() or ""
    return dg.Definitions(
        assets=[succeeding, failing, last],
        jobs=[dg.define_asset_job("everything", executor_def=dg.multiprocess_executor)],
        resources={"mlflow": tracking(uri)},
    ).resolve_job_def("everything")


def test_statuses_are_true_in_one_process(tracking_uri: str) -> None:
    result = dg.materialize(
        [succeeding, failing, last],
        resources={"mlflow": tracking(tracking_uri)},
        raise_on_error=False,
    )
    assert not result.success
    assert runs(tracking_uri) == {"succeeding": "FINISHED", "failing": "FAILED", "last": "FINISHED"}


def test_statuses_are_true_in_many_processes(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_TRACKING_URI", tracking_uri)
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.execute_job(dg.reconstructable(multiprocess_job), instance) as result,
    ):
        assert not result.success
    assert runs(tracking_uri) == {"succeeding": "FINISHED", "failing": "FAILED", "last": "FINISHED"}


def test_no_run_is_left_active_and_a_stray_one_gets_nothing(tracking_uri: str) -> None:
    import mlflow

    tracking(tracking_uri).prepare()
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("tests")
    stray = mlflow.start_run(run_name="stray")
    dg.materialize([succeeding], resources={"mlflow": tracking(tracking_uri)})
    assert mlflow.active_run() is None
    assert runs(tracking_uri) == {"stray": "KILLED", "succeeding": "FINISHED"}
    assert MlflowClient(tracking_uri).get_run(stray.info.run_id).data.params == {}


def test_two_dagster_runs_in_one_process_have_two_mlflow_runs(tracking_uri: str) -> None:
    for _ in range(2):
        dg.materialize([last], resources={"mlflow": tracking(tracking_uri)})
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.data.tags[RUN_TAG] for run in found}) == len(found) == 2


def test_an_interrupted_run_is_killed_not_finished(tracking_uri: str) -> None:
    @dg.asset
    def interrupted(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> None:
        with mlflow.asset_run(context, "interrupted"):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        dg.materialize([interrupted], resources={"mlflow": tracking(tracking_uri)})
    assert runs(tracking_uri) == {"interrupted": "KILLED"}


def test_the_run_of_a_process_that_was_killed_is_ended_by_the_next_one(tracking_uri: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        over = dg.materialize(
            [last], resources={"mlflow": tracking(tracking_uri)}, instance=instance
        ).run_id
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        client.create_run(experiment.experiment_id, tags={RUN_TAG: over}, run_name="orphan")
        client.create_run(experiment.experiment_id, run_name="of somebody else")
        dg.materialize(
            [succeeding], resources={"mlflow": tracking(tracking_uri)}, instance=instance
        )
    assert runs(tracking_uri) == {
        "last": "FINISHED",
        "orphan": "KILLED",
        "of somebody else": "RUNNING",
        "succeeding": "FINISHED",
    }


def prepare(uri: str) -> None:
    tracking(uri).prepare()


def test_a_fresh_database_may_be_used_by_several_processes_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spawned = multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=prepare, args=(uri,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert runs(uri) == {}


class Silent(BaseHTTPRequestHandler):
    """A server that accepts connections and never answers."""

    def do_GET(self) -> None:
        threading.Event().wait(10)


@pytest.fixture
def silent_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://somebody:secret@127.0.0.1:{server.server_port}"
    threading.Thread(target=server.shutdown, daemon=True).start()


def test_a_server_that_is_down_is_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"does not answer.*start it"):
        tracking("http://127.0.0.1:9").prepare()


def test_a_server_that_hangs_is_told_within_seconds_and_without_its_password(
    silent_server: str,
) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as told:
        tracking(silent_server).prepare()
    assert time.monotonic() - began < 10
    assert "secret" not in str(told.value)
    assert "127.0.0.1" in str(told.value)


def test_credentials_are_left_out_of_addresses() -> None:
    assert without_credentials("https://u:p@host:5000/path") == "https://host:5000/path"
    assert without_credentials("http://host/") == "http://host/"
