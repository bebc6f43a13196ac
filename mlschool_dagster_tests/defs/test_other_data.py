"""The whole loop on other data than the penguins: by the documented run configs, nothing else."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.local.platform import local_endpoint
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.platform import Platform, metadata, platform_at, sentence
from mlschool_dagster_tests.worlds import WORLDS, World

FIRST_JOBS = ["training_job", "deployment_job", "traffic_job", "labeling_job"]
JOBS = ["batch_job", "retraining_job", "health_job", "volume_job"]


def documented(job: str) -> dict[str, Any]:
    """The run config of `job` in the documentation."""
    path = ROOT / "docs" / "run_config" / f"{job}.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {op: entry["config"] for op, entry in config["ops"].items()}


def run(platform: Platform, job: str, **more: Any) -> dg.ExecuteInProcessResult:
    result = platform.run(job, documented(job), **more)
    assert result.success, sentence(result)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_documented_job_runs_on_any_data(
    tmp_path: Path, fresh_mlflow_database: Path, world: World
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(fresh_mlflow_database, home / "mlflow.db")
    with ExitStack() as stack:
        platform = stack.enter_context(platform_at(home, **world.write(tmp_path)))
        stack.callback(local_endpoint(platform.settings).stop)
        first = [run(platform, job) for job in FIRST_JOBS]
        assert metadata(first[0], "raw_world")["dagster/row_count"] == world.rows
        with platform.store() as store:
            (window, *_) = store.windows()
        run(platform, "monitoring_job", window=window)
        last = {job: run(platform, job) for job in JOBS}
        assert metadata(last["batch_job"], "batch_predictions")["rejected"] == 0
        platform.definitions.resolve_job_def("rollback_job")


def test_no_documented_run_config_overrides_where_data_is(tmp_path: Path) -> None:
    with platform_at(tmp_path / "home", **WORLDS["numbers alone"].write(tmp_path)) as platform:
        for path in (ROOT / "docs" / "run_config").glob("*.yaml"):
            job = platform.definitions.resolve_job_def(path.stem)
            assert dg.validate_run_config(job, yaml.safe_load(path.read_text(encoding="utf-8")))
            settings = [name for entry in documented(path.stem).values() for name in entry]
            assert not {"uri", "input", "output", "url"}.intersection(settings)


def test_data_that_is_not_there_trains_nothing(tmp_path: Path, fresh_mlflow_database: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(fresh_mlflow_database, home / "mlflow.db")
    with platform_at(home, MLSCHOOL_DATA=str(tmp_path / "nope.csv")) as platform:
        result = platform.run("training_job", documented("training_job"))
        assert "There is no data at" in sentence(result)


def test_the_worlds_are_specs(tmp_path: Path) -> None:
    for world in WORLDS.values():
        world.write(tmp_path)
        assert load_spec(tmp_path / "world.yaml").columns
