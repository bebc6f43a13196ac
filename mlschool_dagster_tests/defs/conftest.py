"""Fixtures for the assets of serving."""

from collections.abc import Iterator

import pytest

from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.local.platform import local_endpoint
from mlschool_dagster_tests.platform import Platform


@pytest.fixture
def target(trained_platform: Platform) -> Iterator[LocalEndpoint]:
    """The platform's endpoint, stopped in the end."""
    target = local_endpoint(trained_platform.settings)
    yield target
    target.stop()
