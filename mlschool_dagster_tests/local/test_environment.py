"""One environment: whoever starts a command, of a state folder there is one platform."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.events import EngineEventData
from dagster._core.instance import InstanceRef
from dagster._core.launcher import WorkerStatus

from mlschool_dagster.identity import Identity
from mlschool_dagster.local.__main__ import environment_file
from mlschool_dagster.local.platform import Platform, Registered, prepare
from mlschool_dagster.settings import PLATFORM_RECORD, ROOT, Settings
from mlschool_dagster_tests.platform import foreign_environment


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that this process' variables name, and nothing else."""
    for name in os.environ.keys() - foreign_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLSCHOOL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def plain(home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """The instance of a plain `dagster` command from the repository, without DAGSTER_HOME."""
    base = tmp_path / "temporary"
    base.mkdir()
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(base), config_dir=str(ROOT))) as one:
        yield one


@dg.op
def speak(context: dg.OpExecutionContext) -> None:
    context.log.info("I was here.")


@dg.job
def speaking() -> None:
    speak()


def test_what_a_plain_command_ran_is_in_the_instance_of_make_with_its_logs(
    home: Path, plain: dg.DagsterInstance
) -> None:
    run = speaking.execute_in_process(instance=plain).run_id
    environment = prepare(Settings.from_environment())
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as of_make:
        assert of_make.get_run_by_id(run)
        logs = of_make.compute_log_manager
        assert logs.get_log_data([run, "compute_logs", "x"]) is not None
        assert vars(logs)["_base_dir"] == vars(plain.compute_log_manager)["_base_dir"]
        assert type(of_make.run_launcher) is type(plain.run_launcher)
        assert not of_make.nux_enabled
        assert of_make.run_monitoring_poll_interval_seconds <= 15
        assert vars(of_make)["_local_artifact_storage"].base_dir == str(home / "dagster")


@pytest.mark.parametrize("path", [ROOT / "dagster.yaml", *ROOT.glob("infra/*/dagster.yaml")])
def test_no_instance_of_ours_reports_home_or_asks_for_a_newsletter(path: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert written["telemetry"] == written["nux"] == {"enabled": False}


def test_an_instance_of_ones_own_is_used_and_left_as_it_is(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {"MLSCHOOL_HOME": str(home), "DAGSTER_HOME": str(own)}
    assert prepare(Settings.from_environment(environment))["DAGSTER_HOME"] == str(own)
    assert (own / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_a_platform_that_runs_is_the_one_meant_whatever_the_shell_says(home: Path) -> None:
    addresses = {
        "DAGSTER_HOME": str(home / "dagster"),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5001",
        "MLSCHOOL_ENDPOINT_PORT": "8081",
        "MLSCHOOL_FILES_URL": "http://127.0.0.1:8091",
    }
    shell = {"MLSCHOOL_HOME": str(home), "MLSCHOOL_ENDPOINT_PORT": "8080"}
    here = Identity.of(os.getpid())
    platform = Platform("http://127.0.0.1:3001", "", "", addresses)
    home.mkdir()
    Registered(here, [], platform).save(home / PLATFORM_RECORD)
    settings = Settings.from_environment(shell)
    assert settings.endpoint_port == 8081
    assert settings.files_url == "http://127.0.0.1:8091"
    assert settings.tracking_uri == "http://127.0.0.1:5001"
    gone = Identity(here.pid, here.created - 1000)
    Registered(gone, [], platform).save(home / PLATFORM_RECORD)
    assert Settings.from_environment(shell).endpoint_port == 8080


def test_make_reads_the_file_that_dagster_reads_and_as_it_does(tmp_path: Path) -> None:
    from dagster._core.secrets.env_file import get_env_var_dict

    text = "# a comment\nMLSCHOOL_HOME='a b'\nexport MLSCHOOL_DATA=x.csv # here\nODD\nEMPTY=\n"
    (tmp_path / ".env").write_text(text)
    assert environment_file(tmp_path) == get_env_var_dict(str(tmp_path))
    assert environment_file(tmp_path)["MLSCHOOL_HOME"] == "a b"
    assert environment_file(tmp_path / "nowhere") == {}


def test_a_run_is_dead_once_no_process_that_worked_on_it_lives(plain: dg.DagsterInstance) -> None:
    run = plain.create_run_for_job(speaking, status=dg.DagsterRunStatus.STARTED)
    launcher = plain.run_launcher
    assert launcher.supports_check_run_worker_health
    # Nothing is known of it yet.
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        data = EngineEventData.in_process(process.pid)
        plain.report_engine_event("Started process for run.", run, data)
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        process.kill()
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


@pytest.mark.slow
def test_a_job_with_empty_variables_ends_well_and_writes_into_the_state_folder(
    tmp_path: Path,
) -> None:
    """An empty address of MLflow would be that of files in the current folder."""
    folder, home = tmp_path / "current", tmp_path / "home"
    folder.mkdir()
    (tmp_path / "instance").mkdir()
    variables = {"MLFLOW_TRACKING_URI": "", "MLSCHOOL_CAPTURE_STORE": " ", "MLSCHOOL_HISTORY": ""}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "job", "execute"),
            *("-m", "mlschool_dagster.definitions", "-j", "volume_job"),
        ],
        cwd=folder,
        env={
            **foreign_environment(),
            **variables,
            "MLSCHOOL_HOME": str(home),
            "DAGSTER_HOME": str(tmp_path / "instance"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "RUN_SUCCESS" in done.stderr
    assert [*folder.iterdir()] == []
    assert (home / "captures.db").exists()
