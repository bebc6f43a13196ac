"""An endpoint of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlschool_dagster.targets.local import LocalTarget
from mlschool_dagster_tests.serving.server import (
    free_port,
)
from mlschool_dagster_tests.targets.local_targets import (
    target_of,
)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def target(tmp_path: Path, port: int) -> Iterator[LocalTarget]:
    target = target_of(tmp_path, port)
    yield target
    target.stop()
