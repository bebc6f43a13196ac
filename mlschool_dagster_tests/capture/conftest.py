"""The places where stores can be made: files, and schemas of one PostgreSQL server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster_tests.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgres"], scope="session")
def fresh_uri(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Gives the URI of a store that is not there yet, in a folder if it needs one."""
    if request.param == "sqlite":
        return lambda folder: f"sqlite:///{folder / 'captures.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda folder: server.fresh_uri()


@pytest.fixture
def uri(fresh_uri: Callable[[Path], str], tmp_path: Path) -> str:
    return fresh_uri(tmp_path)


@pytest.fixture
def store(uri: str) -> Iterator[CaptureStore]:
    store = open_store(uri)
    yield store
    store.close()
