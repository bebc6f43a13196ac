"""One MLflow run per asset: it ends as the asset ended, and nothing else ends up in it."""

import multiprocessing
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest
from mlflow import MlflowClient

from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.asset_run import RUN_TAG
from mlschool_dagster.resources.tracking import NOTE, MlflowTracking, without_credentials
from mlschool_dagster.settings import Settings
from mlschool_dagster_tests.postgres import PostgresServer


def tracking(uri: str, dagster_url: str = "") -> MlflowTracking:
    folder = Path(uri.removeprefix("sqlite://")).parent.absolute()
    return MlflowTracking(
        tracking_uri=uri,
        experiment="tests",
        artifacts=str(folder / "artifacts"),
        dagster_url=dagster_url,
    )


def runs(uri: str) -> dict[str, str]:
    """Status by name of every run in the experiment."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    # The name of a run of ours ends with the start of Dagster's id.
    return {
        run.info.run_name.removesuffix(f" {run.data.tags.get(RUN_TAG, '')[:8]}"): run.info.status
        for run in client.search_runs([experiment.experiment_id])
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


@dg.asset
def writing(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> None:
    with mlflow.asset_run(context, "writing") as run:
        run.log_text("text", "note.txt")


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


def test_a_server_that_is_down_is_reported_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"does not answer.*start it"):
        tracking("http://127.0.0.1:9").prepare()


def test_a_server_that_hangs_is_reported_within_seconds_and_without_its_password(
    silent_server: str,
) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        tracking(silent_server).prepare()
    assert time.monotonic() - began < 10
    assert "secret" not in str(raised.value)
    assert "127.0.0.1" in str(raised.value)


class Api(BaseHTTPRequestHandler):
    """The one call that a run makes beforehand, below `prefix`, for whoever has the `token`."""

    prefix = ""
    token = ""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.token and self.headers["Authorization"] != f"Bearer {self.token}":
            status, body = 401, b"Who are you?"
        elif path == f"{self.prefix}/api/2.0/mlflow/experiments/search":
            status, body = 200, b'{"experiments": []}'
        else:
            # Some proxies answer whatever they do not know with their page.
            status, body = (200, b"<html></html>") if "page" in path else (404, b"nothing here")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(prefix: str = "", token: str = "", certificate: Path | None = None) -> Iterator[str]:
    handler = type("Handler", (Api,), {"prefix": prefix, "token": token})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("prefix", ["", "/behind/a/prefix"])
def test_a_server_needs_no_health_page_at_its_root(prefix: str, ending: str) -> None:
    with served(prefix) as address:
        tracking(address + ending).prepare()


def test_a_token_is_presented_as_mlflow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "opensesame"  # noqa: S105
    with served(token=token) as address:
        with pytest.raises(UserError, match=r"refuses access.*MLFLOW_TRACKING_TOKEN"):
            tracking(address).prepare()
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
        tracking(address).prepare()


def test_a_certificate_of_ones_own_is_trusted_as_mlflow_does(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(certificate=certificate) as address:
        with pytest.raises(UserError, match=r"does not answer \(SSLError\)"):
            tracking(address).prepare()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        tracking(address).prepare()


@pytest.mark.parametrize("path", ["/elsewhere", "/page"])
def test_what_is_no_mlflow_server_is_reported_with_what_to_do(path: str) -> None:
    with (
        served() as address,
        pytest.raises(UserError, match=r"does not answer as MLflow does .*prefix included"),
    ):
        tracking(address + path).prepare()


def test_links_open_mlflow_where_its_models_are() -> None:
    for address in ("https://u:p@host/ml", "https://host/ml/"):
        link = tracking(address).link("models/penguins/versions/1")
        assert link.value == (
            "https://host/ml/#/models/penguins/versions/1?workflowType=machine_learning"
        )


def test_an_mlflow_run_leads_back_to_dagster(tracking_uri: str) -> None:
    mlflow = tracking(tracking_uri, "http://127.0.0.1:3000/")
    run_id = dg.materialize([last], resources={"mlflow": mlflow}).run_id
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == f"last {run_id[:8]}"
    assert f"[{run_id[:8]}](http://127.0.0.1:3000/runs/{run_id})" in run.data.tags[NOTE]


@pytest.mark.parametrize("value", ["", None])
def test_nothing_is_left_where_one_happens_to_be(
    value: str | None, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CI secret that is unset gives an empty variable."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if value is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    dg.materialize([last, succeeding], resources={"mlflow": tracking(tracking_uri)})
    assert list(elsewhere.iterdir()) == []
    assert set(runs(tracking_uri)) == {"last", "succeeding"}


@pytest.mark.slow
def test_a_database_server_keeps_no_artifacts_where_one_happens_to_be(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = postgres.fresh_uri().replace("postgresql:", "postgresql+psycopg:", 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow = MlflowTracking(
        tracking_uri=uri, experiment="tests", artifacts=str(tmp_path / "artifacts")
    )
    dg.materialize([writing], resources={"mlflow": mlflow})
    assert list(Path().iterdir()) == []
    assert [path.read_text() for path in tmp_path.rglob("note.txt")] == ["text"]


def test_mlflow_tells_nobody_of_its_use() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_DISABLE_TELEMETRY"}
    code = "import mlschool_dagster, os; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "true"


@pytest.mark.parametrize("name", ["a#b", "a b&c=d", "\u00fc\u4f60", "a;b:c@d"])
def test_a_state_folder_may_have_any_name(
    name: str, fresh_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / name
    home.mkdir()
    shutil.copy(fresh_mlflow_database, home / "mlflow.db")
    uri = Settings.from_environment({"MLSCHOOL_HOME": str(home)}).tracking_uri
    mlflow = MlflowTracking(tracking_uri=uri, experiment="tests", artifacts=str(home / "artifacts"))

    dg.materialize([writing], resources={"mlflow": mlflow})
    assert runs(uri) == {"writing": "FINISHED"}
    assert [path.read_text() for path in home.rglob("note.txt")] == ["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert {path.name for path in home.iterdir()} <= {"mlflow.db", "mlflow.db.lock", "artifacts"}


def test_credentials_are_left_out_of_addresses() -> None:
    assert without_credentials("https://u:p@host:5000/path") == "https://host:5000/path"
    assert without_credentials("http://host/") == "http://host/"
