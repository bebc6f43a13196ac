"""The shape of the platform: what a user finds in the UI changes only on purpose.

``python -m mlschool_dagster_tests.test_definitions`` writes the snapshot anew.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
import yaml

from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.keys import ENDPOINT_HEALTH, LIVE_TRAFFIC
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.platform import Platform, foreign_environment, platform_at
from mlschool_dagster_tests.serving.server import free_port

SNAPSHOT = Path(__file__).with_name("definitions.json")


def shape(definitions: dg.Definitions) -> dict[str, Any]:
    """Everything of the definitions that a user sees or relies on, as plain data."""
    graph = definitions.resolve_asset_graph()
    repository = definitions.get_repository_def()
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    return {
        "assets": {
            key.to_user_string(): {
                "group": spec.group_name,
                "kinds": sorted(spec.kinds),
                "owners": list(spec.owners),
                "code_version": spec.code_version,
                "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
                "partitions": type(spec.partitions_def).__name__ if spec.partitions_def else None,
                "description": spec.description,
            }
            for key, spec in sorted(specs.items())
        },
        "checks": {
            f"{key.asset_key.to_user_string()}:{key.name}": {
                "blocking": graph.get_check_spec(key).blocking,
                "description": graph.get_check_spec(key).description,
            }
            for key in sorted(graph.asset_check_keys)
        },
        "jobs": {
            job.name: {"description": job.description, "tags": dict(job.tags)}
            for job in sorted(repository.get_all_jobs(), key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "sensors": {
            sensor.name: {
                "default_status": sensor.default_status.value,
                "interval_seconds": sensor.minimum_interval_seconds,
                "description": sensor.description,
            }
            for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name)
        },
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "job": schedule.job_name,
                "default_status": schedule.default_status.value,
                "description": schedule.description,
            }
            for schedule in repository.schedule_defs
        },
    }


def test_the_definitions_are_those_of_the_snapshot() -> None:
    expected = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert shape(build_definitions()) == expected


def test_everything_is_described_and_owned() -> None:
    found = shape(build_definitions())
    for kind, entries in found.items():
        for name, entry in entries.items():
            assert entry["description"], f"{kind}: {name}"
    for name, asset in found["assets"].items():
        assert asset["owners"] and asset["kinds"] and asset["group"], name
        assert asset["code_version"] or name == "live_traffic", name


def test_every_asset_that_is_made_links_to_its_source() -> None:
    for spec in build_definitions().resolve_all_asset_specs():
        linked = spec.metadata.get("dagster/code_references")
        if spec.key not in (ENDPOINT_HEALTH, LIVE_TRAFFIC):
            assert isinstance(linked, dg.CodeReferencesMetadataValue)
            (source,) = linked.code_references
            assert isinstance(source, dg.LocalFileCodeReference)
            assert Path(source.file_path).is_relative_to(ROOT / "mlschool_dagster" / "defs")


def test_a_resource_can_be_overridden() -> None:
    other = MlflowTracking(tracking_uri="sqlite:///other.db", experiment="other", artifacts="a")
    resources = build_definitions(mlflow=other).resources or {}
    assert resources["mlflow"] == other


def test_a_location_with_a_password_is_shown_by_its_variable_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:5000")
    shown = repr(build_definitions().resources)
    assert "MLFLOW_TRACKING_URI" in shown
    assert "secret" not in shown


def test_the_token_is_shown_by_its_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCHOOL_ENDPOINT_TOKEN", "secret-token")
    shown = repr(build_definitions().resources)
    assert "MLSCHOOL_ENDPOINT_TOKEN" in shown
    assert "secret-token" not in shown


def dagster(folder: Path, *command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run Dagster's command line on the definitions, in `folder`."""
    located = {"PYTHONPATH": str(ROOT), "MLSCHOOL_HOME": str(folder / "home"), **settings}
    program = [sys.executable, "-W", "ignore", "-m", "dagster"]
    return subprocess.run(
        [*program, *command, "-m", "mlschool_dagster.definitions"],
        cwd=folder,
        env={**foreign_environment(), **located},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mistake", ["spec", "setting"])
def test_a_mistake_of_the_user_ends_the_command_line_in_one_sentence(
    tmp_path: Path, mistake: str
) -> None:
    spec = tmp_path / "spec.yaml"
    penguins = (ROOT / "data" / "penguins.yaml").read_text(encoding="utf-8")
    spec.write_text(penguins.replace("[Adelie, ", "[No, "), encoding="utf-8")
    settings, sentence = {
        "spec": ({"MLSCHOOL_SPEC": str(spec)}, "target.classes[0] must be text"),
        "setting": ({"MLSCHOOL_ENDPOINT_PORT": "http"}, "MLSCHOOL_ENDPOINT_PORT is"),
    }[mistake]
    done = dagster(tmp_path, "job", "execute", "-j", "training_job", **settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert sentence in line


def test_a_code_server_reports_what_is_wrong_with_the_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: 1", encoding="utf-8")
    settings = {"MLSCHOOL_SPEC": str(tmp_path / "spec.yaml")}
    done = dagster(tmp_path, "definitions", "validate", **settings)
    assert done.returncode == 1
    assert f"The data spec {tmp_path / 'spec.yaml'} cannot be used: " in done.stdout + done.stderr


def test_another_model_on_the_same_state_folder_is_refused(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "data" / "penguins.yaml").read_text(encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(text.replace("name: penguins", "name: birds", 1), "utf-8")
    monkeypatch.setenv("MLSCHOOL_SPEC", str(tmp_path / "spec.yaml"))
    with pytest.raises(UserError, match="belongs to the model penguins, but the data spec is that"):
        build_definitions()


def dg_command(*arguments: str) -> list[str]:
    """Dagster's ``dg``, as it is installed beside this Python."""
    return [str(Path(sys.executable).with_name("dg")), *arguments]


def dg_environment(home: Path) -> dict[str, str]:
    return {**foreign_environment(), "MLSCHOOL_HOME": str(home)}


@pytest.mark.slow
def test_dg_checks_lists_and_launches_from_the_repository(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            dg_command(*arguments),
            cwd=ROOT,
            env=dg_environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "All definitions loaded successfully" in run("check", "defs")
    listed = json.loads(run("list", "defs", "--json"))
    assert {asset["asset_key"] for asset in listed["assets"]} == set(
        shape(build_definitions())["assets"]
    )
    run("launch", "--assets", "raw_penguins")
    with platform_at(tmp_path / "home") as platform:
        assert platform.instance.get_latest_materialization_event(dg.AssetKey("raw_penguins"))


@pytest.mark.slow
def test_dg_dev_serves_the_definitions_by_the_name_that_dagster_dev_gives_them(
    tmp_path: Path,
) -> None:
    """Dagster keeps the state of sensors by the name of their code location."""
    port = free_port()
    command = dg_command("dev", "--host", "127.0.0.1", "--port", str(port))
    query = "{repositoriesOrError{... on RepositoryConnection{nodes{location{name}}}}}"
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    name = workspace["load_from"][0]["python_module"]["location_name"]
    with subprocess.Popen(
        command, cwd=ROOT, env=dg_environment(tmp_path / "home"), start_new_session=True
    ) as dev:
        try:
            while not (served := _answer(f"http://127.0.0.1:{port}/graphql", query)):
                assert dev.poll() is None
                time.sleep(0.5)
        finally:
            os.killpg(dev.pid, signal.SIGINT)
    nodes = served["data"]["repositoriesOrError"]["nodes"]
    assert [node["location"]["name"] for node in nodes] == [name]


def _answer(url: str, query: str) -> dict[str, Any]:
    try:
        answer = httpx.post(url, json={"query": query}, timeout=30)
    except httpx.HTTPError:
        return {}
    return dict(answer.json()) if answer.is_success else {}


if __name__ == "__main__":
    text = json.dumps(shape(build_definitions()), indent=2, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")
