"""A throw-away platform: the real definitions, on a state folder and a port of their own."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import pandas as pd
import psutil
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster_shared.error import SerializableErrorInfo

from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.common import UNDECIDED
from mlschool_dagster.local.platform import prepare
from mlschool_dagster.modeling.registry import Registry
from mlschool_dagster.settings import MODEL_FILE, ROOT, Settings
from mlschool_dagster_tests.serving.server import free_port

SPEC = load_spec(ROOT / "data" / "penguins.yaml")
DATA = ROOT / "data" / "penguins.csv"
WINDOW = Window.of(utc_now() - timedelta(hours=5))
"""A window in the past: Dagster knows no others."""

LATER = Window(WINDOW.end)
SOURCE = "test"

Config = Mapping[str, Mapping[str, Any]]
"""What is configured, by op and setting."""

_OURS = ("MLSCHOOL_", "MLFLOW_", "DAGSTER_")
"""Prefixes of variables that would let a test reach somebody's own platform."""


@dataclass(frozen=True)
class Platform:
    """The definitions and the Dagster instance of the state folder `home`."""

    home: Path
    settings: Settings
    environment: dict[str, str]
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    def run(
        self,
        job: str,
        config: Config = MappingProxyType({}),
        window: Window | None = None,
        assets: Sequence[str | dg.AssetKey] = (),
    ) -> dg.ExecuteInProcessResult:
        """Execute `job` here; `config` is by op, `assets` selects some of the job's."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config=run_config(config),
            instance=self.instance,
            partition_key=window.key if window else None,
            asset_selection=[dg.AssetKey.from_coercible(name) for name in assets] or None,
            raise_on_error=False,
        )

    @property
    def files(self) -> Path:
        """The folder of the platform's files."""
        return Path(self.settings.files)

    def dataset(self, name: str) -> pd.DataFrame:
        """The newest data set `name`."""
        paths = (self.files / "data" / name).glob("*.parquet")
        return pd.read_parquet(max(paths, key=lambda path: path.stat().st_mtime_ns))

    @contextmanager
    def store(self) -> Iterator[CaptureStore]:
        """The capture store."""
        store = open_store(self.settings.capture_store)
        yield store
        store.close()

    def registry(self) -> Registry:
        """The model registry."""
        return Registry(self.settings.tracking_uri, SPEC.name)

    def subprocess_environment(self) -> dict[str, str]:
        """The environment in which a command finds this platform and no other."""
        return {**foreign_environment(), **self.environment}


def processes(home: Path) -> list[psutil.Process]:
    """Every process that was started with `home` as its state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLSCHOOL_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextmanager
def platform_at(home: Path, **more: str) -> Iterator[Platform]:
    """The platform with its state in `home`, which may hold some already, and `more` settings."""
    environment = {"MLSCHOOL_HOME": str(home), "MLSCHOOL_ENDPOINT_PORT": str(free_port()), **more}
    settings = Settings.from_environment(environment)
    environment |= prepare(settings)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_OURS)]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
            yield Platform(home, settings, environment, build_definitions(), instance)


def foreign_environment() -> dict[str, str]:
    """The variables of this process that say nothing of a platform."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


def run_config(config: Config) -> dict[str, Any]:
    """`config` as Dagster takes it."""
    return {"ops": {op: {"config": dict(values)} for op, values in config.items()}}


def untouched_home(home: Path, mlflow_database: Path) -> Path:
    """Fill `home` with what costs time to make: the databases of MLflow and Dagster, empty."""
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    with platform_at(home):
        # Nothing has happened yet: it may become the home of any model.
        (home / MODEL_FILE).unlink()
        return home


def trained_home(home: Path, mlflow_database: Path) -> Path:
    """Fill `home` with a platform whose version 1 is registered and serves nowhere yet."""
    with platform_at(untouched_home(home, mlflow_database)) as platform:
        assert platform.run("training_job").success
    return home


def failure(result: dg.ExecuteInProcessResult) -> SerializableErrorInfo:
    """Error message of the one step that failed."""
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    error = event.step_failure_data.error
    assert error is not None
    return error


def sentence(result: dg.ExecuteInProcessResult) -> str:
    """Error message of the one step that failed, which is one line without a traceback."""
    error = failure(result)
    assert error.stack == []
    assert error.cause is None
    assert "Stack Trace" not in error.to_string()
    text = error.message.strip()
    assert "\n" not in text
    return text


def checks(result: dg.ExecuteInProcessResult) -> dict[str, AssetCheckEvaluation]:
    """The outcome of each asset check, by name."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def undecided(result: dg.ExecuteInProcessResult) -> set[str]:
    """The undecided asset checks."""
    return {name for name, found in checks(result).items() if UNDECIDED in found.metadata}


def materialized(result: dg.ExecuteInProcessResult) -> set[str]:
    """The assets that the run materialized."""
    return {
        event.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def metadata(result: dg.ExecuteInProcessResult, asset: str | dg.AssetKey) -> dict[str, Any]:
    """What `asset` says of itself after the run."""
    (event,) = (
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey.from_coercible(asset)
    )
    return {name: value.value for name, value in event.materialization.metadata.items()}


def traffic(
    reference: pd.DataFrame, rows: int, window: Window = WINDOW, version: str = "1", start: int = 0
) -> list[Capture]:
    """`rows` captures of a `version` whose `reference` says what it answers, one a second."""
    drawn = reference.sample(rows, replace=True, random_state=7 + start)
    return [
        Capture(
            event_id=f"{window.key}-{number}",
            captured_at=window.start + timedelta(seconds=number),
            endpoint=SPEC.name,
            model_version=version,
            inputs={name: None if pd.isna(row[name]) else row[name] for name in SPEC.input_names},
            prediction=row["prediction"],
            confidence=row["confidence"],
            probabilities={name: row[f"probability_{name}"] for name in SPEC.target.classes},
        )
        for number, row in enumerate(drawn.to_dict("records"), start)
    ]


def truth(captures: Sequence[Capture], right: bool = True) -> list[Label]:
    """A label for each of `captures`: its prediction, or the class after it."""
    classes = SPEC.target.classes
    return [
        Label(
            capture.event_id,
            classes[(classes.index(capture.prediction) + (not right)) % len(classes)],
            utc_now(),
            SOURCE,
        )
        for capture in captures
    ]
