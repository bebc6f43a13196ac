"""Nothing acknowledged is lost, kept twice, kept or answered otherwise, whatever breaks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlschool_dagster import clock
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.serving.chaos import Chaos, PostgresDatabase, SqliteFile, Store

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
"""How often everything is broken; a round takes about 45 seconds."""
SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        (tmp_path / "store").mkdir()
        yield SqliteFile(tmp_path / "store")
    else:
        with PostgresServer() as server:
            yield PostgresDatabase(server)


@pytest.mark.slow
def test_whatever_breaks_what_was_answered_is_kept_once_and_answered_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv(clock.CLOCK, str(home / "clock"))
    account = Chaos(home, store, SEED).run(ROUNDS)
    print(f"\n{account.table()}\n{dict(account.statuses)}")  # noqa: T201
    assert account.unfit == []
    assert account.acknowledged > 100
    assert account.lost == []
    assert account.kept_twice == []
    assert account.kept_otherwise == []
    assert account.kept_beside == []
    assert account.answered_otherwise == []
    assert account.others_answered == []
