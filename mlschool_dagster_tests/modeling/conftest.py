from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.modeling.evaluation import evaluate
from mlschool_dagster.modeling.packaging import log_model, log_training
from mlschool_dagster.modeling.training import TrainingResult, train
from mlschool_dagster.modeling.training_config import TrainingConfig
from mlschool_dagster_tests.modeling.logged import Logged
from mlschool_dagster_tests.worlds import DATA


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def trained(penguins: pd.DataFrame, spec: DataSpec, compilation_cache: Path) -> TrainingResult:
    return train(penguins, spec, TrainingConfig(), compilation_cache=compilation_cache)


@pytest.fixture(scope="session")
def logged(
    trained: TrainingResult,
    penguins: pd.DataFrame,
    spec: DataSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Logged]:
    """A training logged into an MLflow of its own."""
    home = tmp_path_factory.mktemp("mlflow")
    tracking_uri = f"sqlite:///{home}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        experiment = mlflow.create_experiment("tests", artifact_location=(home / "a").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            evaluation = evaluate(trained, penguins, spec)
            log_training(trained, evaluation, penguins, spec, source=str(DATA / "penguins.csv"))
            model_uri = log_model(trained, penguins, spec)
        yield Logged(tracking_uri, run.info.run_id, model_uri)
    finally:
        mlflow.set_tracking_uri(before)
