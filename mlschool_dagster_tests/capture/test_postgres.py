"""What is particular to the store in PostgreSQL: a server that comes and goes, and its secrets."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mlschool_dagster.capture import postgres as postgres_store
from mlschool_dagster.capture.idempotency import NO_DUPLICATES
from mlschool_dagster.capture.store import (
    CaptureStore,
    InvalidCaptureError,
    StoreUnavailableError,
    open_store,
)
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.capture.samples import WINDOW, capture, label
from mlschool_dagster_tests.postgres import PASSWORD, PostgresServer


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    return postgres.fresh_uri()


@pytest.fixture
def store(uri: str) -> Iterator[CaptureStore]:
    store = open_store(uri)
    yield store
    store.close()


def test_making_a_store_contacts_nothing() -> None:
    open_store("postgresql://someone@127.0.0.1:1/nowhere").close()


def test_a_server_that_is_not_there_is_unavailable_at_once() -> None:
    store = open_store("postgresql://someone:secret@127.0.0.1:1/nowhere")
    started = time.monotonic()
    for use in (
        lambda: store.append([capture("a")]),
        lambda: store.append_labels([label("a")]),
        lambda: store.count_refusals(WINDOW, {"malformed": 1}),
        lambda: store.read(WINDOW),
    ):
        with pytest.raises(StoreUnavailableError, match="nowhere at") as raised:
            use()
        assert "secret" not in str(raised.value)
    assert time.monotonic() - started < 2


def test_a_wrong_password_is_reported_but_no_password(postgres: PostgresServer) -> None:
    store = open_store(postgres.uri().replace("owner:", "owner:wrong"))
    with pytest.raises(StoreUnavailableError, match="authentication failed") as raised:
        store.windows()
    assert PASSWORD not in str(raised.value)
    assert "wrong" not in str(raised.value)


@pytest.mark.parametrize("password", ["pa/ss", "pa@ss", "pa%"])
def test_an_address_that_makes_no_sense_is_reported_but_not_shown(password: str) -> None:
    with pytest.raises(UserError, match="percent-encoded") as raised:
        open_store(f"postgresql://me:{password}@host/database")
    assert "pa/" not in str(raised.value)
    assert "pa@" not in str(raised.value)


def test_the_driver_that_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from mlschool_dagster.capture.store import open_store\n"
        "open_store('postgresql://host/database')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "pip install 'mlschool-dagster[postgres]'" in ended.stderr


def test_a_fresh_database_may_be_used_by_many_at_once(uri: str) -> None:
    def work(number: int) -> None:
        store = open_store(uri)
        store.append([capture(str(number))])
        store.close()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    store = open_store(uri)
    assert store.windows() == {WINDOW: 12}
    store.close()


def test_the_format_of_a_newer_release_is_reported(postgres: PostgresServer) -> None:
    uri = postgres.fresh_uri()
    store = open_store(uri)
    store.windows()
    store.close()
    schema = uri.rpartition("%3D")[2]
    postgres.execute(f"UPDATE {schema}.store SET version = 99")  # noqa: S608
    with pytest.raises(UserError, match="format 99"):
        open_store(uri).windows()


def test_tables_that_were_removed_are_made_anew(postgres: PostgresServer, uri: str) -> None:
    store = open_store(uri)
    store.append([capture("a")])
    cursor = store.captures_since(None).cursor
    schema = uri.rpartition("%3D")[2]
    postgres.execute(f"DROP SCHEMA {schema} CASCADE")
    postgres.execute(f"CREATE SCHEMA {schema}")
    with pytest.raises(StoreUnavailableError):
        store.append([capture("b")])
    store.append([capture("b")])
    assert store.captures_since(cursor).windows == {WINDOW}
    store.close()


def test_what_can_never_be_kept_is_no_absence_of_the_server(store: CaptureStore) -> None:
    for odd in (
        replace(capture("b"), endpoint="zero\x00byte"),
        replace(capture("b"), prediction=None),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidCaptureError, match="does not take"):
            store.append([capture("a"), odd])
    assert store.append([capture("a")]) == NO_DUPLICATES
    assert list(store.read(WINDOW)["event_id"]) == ["a"]


def test_a_connection_that_died_unnoticed_is_replaced(
    postgres: PostgresServer, store: CaptureStore
) -> None:
    store.append([capture("a")])
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'mlschool capture store'"
    )
    assert store.append([capture("b")]) == NO_DUPLICATES
    assert list(store.read(WINDOW)["event_id"]) == ["a", "b"]


def test_numbers_become_visible_in_order(postgres: PostgresServer, uri: str) -> None:
    """Writers at once, while a reader moves its cursor: what it has passed never changes."""
    store, ended = open_store(uri), threading.Event()
    missed: list[str] = []

    def follow() -> None:
        cursor, seen = None, 0
        while not ended.is_set() or seen < 200:
            changes = store.captures_since(cursor)
            if changes.windows:
                position = int(changes.cursor.partition("-")[2])
                count = store.revision(WINDOW).captures
                if count < position:
                    missed.append(f"{count} of {position}")
                seen = position
            cursor = changes.cursor

    def write(writer: int) -> None:
        own = open_store(uri)
        for number in range(50):
            own.append([capture(f"{writer}-{number}")])
        own.close()

    store.windows()
    follower = threading.Thread(target=follow)
    follower.start()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    ended.set()
    follower.join()
    assert missed == []
    store.close()


def test_a_server_that_hangs_is_unavailable(
    postgres: PostgresServer, store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "WRITE_SECONDS", 0.3)
    store.append([capture("a")])
    (pid,) = store._fetch("SELECT pg_backend_pid()", {})[0]  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailableError, match="no answer within"):
            store.append([capture("b")])
        store.append([capture("c")])
        assert list(store.read(WINDOW)["event_id"]) == ["a", "c"]
    finally:
        os.kill(pid, signal.SIGCONT)
