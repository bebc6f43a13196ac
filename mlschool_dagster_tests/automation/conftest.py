import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlschool_dagster_tests.platform import Platform, platform_at, untouched_home


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, fresh_mlflow_database: Path) -> Path:
    """The state of a platform on which nothing has happened yet, to be copied."""
    return untouched_home(tmp_path_factory.mktemp("untouched") / "home", fresh_mlflow_database)


@pytest.fixture
def platform(untouched: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform on which nothing has happened yet."""
    with platform_at(shutil.copytree(untouched, tmp_path / "home")) as platform:
        yield platform
