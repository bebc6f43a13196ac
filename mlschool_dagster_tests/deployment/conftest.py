"""An endpoint of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster_tests.deployment.local_endpoints import endpoint_of
from mlschool_dagster_tests.serving.server import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def endpoint(tmp_path: Path, port: int) -> Iterator[LocalEndpoint]:
    endpoint = endpoint_of(tmp_path, port)
    yield endpoint
    endpoint.stop()
