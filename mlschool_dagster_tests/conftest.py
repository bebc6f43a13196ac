"""Fixtures for every room."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fresh_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in it; creating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def tracking_uri(fresh_mlflow_database: Path, tmp_path: Path) -> str:
    """The tracking URI of an empty MLflow database of the test's own."""
    shutil.copy(fresh_mlflow_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
