"""The platform's own tables: made once, written by one at a time, and never telling a password."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from mlschool_dagster.database import Database, claim
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.history import History
from mlschool_dagster_tests.postgres import PASSWORD, PostgresServer

TABLES = MetaData()
COUNTERS = Table("counters", TABLES, Column("id", Integer, primary_key=True), Column("n", Integer))


def count_up(uri: str, times: int) -> None:
    """Open the database, add the one row if it is missing, and count it up."""
    database = Database(uri, TABLES)
    for _ in range(times):
        with database.transaction() as connection:
            n = connection.execute(select(COUNTERS.c.n)).scalar_one_or_none()
            if n is None:
                connection.execute(insert(COUNTERS).values(id=1, n=1))
            else:
                connection.execute(update(COUNTERS).values(n=n + 1))
    database.close()


def counted(uri: str) -> int:
    database = Database(uri, TABLES)
    with database.reading() as connection:
        n = connection.execute(select(COUNTERS.c.n)).scalar_one()
    database.close()
    return int(n)


def test_many_meet_a_database_that_is_not_there_yet(uri: str) -> None:
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(count_up, [uri] * 12, [5] * 12))
    assert counted(uri) == 60


def test_processes_that_read_and_write_take_turns(uri: str) -> None:
    processes = [get_context("spawn").Process(target=count_up, args=(uri, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counted(uri) == 200


def test_work_that_raises_is_undone(uri: str) -> None:
    database = Database(uri, TABLES)
    with pytest.raises(KeyError), database.transaction() as connection:
        connection.execute(insert(COUNTERS).values(id=1, n=1))
        raise KeyError
    with database.reading() as connection:
        assert connection.execute(select(COUNTERS)).all() == []
    database.close()


def test_who_reads_waits_for_nobody_and_sees_what_was_kept(uri: str) -> None:
    count_up(uri, 1)
    database = Database(uri, TABLES)
    with database.transaction() as connection:
        connection.execute(update(COUNTERS).values(n=99))
        assert counted(uri) == 1
    assert counted(uri) == 99
    database.close()


def test_a_row_that_is_there_already_is_a_fault_of_the_program(uri: str) -> None:
    count_up(uri, 1)
    database = Database(uri, TABLES)
    with pytest.raises(IntegrityError), database.transaction() as connection:
        connection.execute(insert(COUNTERS).values(id=1, n=1))
    database.close()


@pytest.mark.parametrize(
    "uri",
    ["nonsense", "redis://somewhere", "sqlite://", "postgresql://me:sec/ret@h/d:x",
     "postgresql://me:se@cret@host/db", "postgresql://me:secret@host:port/db"],
)  # fmt: skip
def test_a_uri_that_cannot_be_used_is_reported_but_not_shown(uri: str) -> None:
    with pytest.raises(UserError, match="MLSCHOOL_HISTORY") as raised:
        Database(uri, TABLES)
    assert "cret" not in str(raised.value)


def test_a_server_that_is_not_there_is_reported_without_the_password() -> None:
    with pytest.raises(UserError, match="check MLSCHOOL_HISTORY") as raised:
        Database("postgresql://me:secret@127.0.0.1:1/nowhere", TABLES)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_wrong_password_is_reported_but_no_password(postgres: PostgresServer) -> None:
    with pytest.raises(UserError, match="authentication failed") as raised:
        Database(postgres.uri().replace("owner:", "owner:wrong"), TABLES)
    assert PASSWORD not in str(raised.value)
    assert "wrong" not in str(raised.value)


def test_files_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a diary, not a database" * 100)
    for path in ("file", "file/history.db"):
        with pytest.raises(UserError, match="MLSCHOOL_HISTORY"):
            Database(f"sqlite:///{tmp_path}/{path}", TABLES)


def test_a_file_that_another_program_reads_is_entered_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    count_up(f"sqlite:///{path}", 1)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT n FROM counters").fetchone() == (1,)
        count_up(f"sqlite:///{path}", 1)
    assert counted(f"sqlite:///{path}") == 2


def test_a_connection_that_died_unnoticed_is_replaced(postgres: PostgresServer) -> None:
    uri = postgres.fresh_uri()
    count_up(uri, 1)
    database = Database(uri, TABLES)
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'mlschool platform'"
    )
    with database.reading() as connection:
        assert connection.execute(select(COUNTERS.c.n)).scalar_one() == 1
    database.close()


def test_a_database_belongs_to_one_model(uri: str) -> None:
    claim(uri, "first")
    with pytest.raises(UserError, match=r"belongs to the model first, .* that of second; let"):
        claim(uri, "second")
    claim.cache_clear()
    claim(uri, "first")
    with History(uri=uri, model="first").metrics() as metrics:
        assert metrics.read() == []
    with pytest.raises(UserError), History(uri=uri, model="second").metrics():
        pass
