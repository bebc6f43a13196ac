"""What is particular to the store in an SQLite file: how it is opened, and on what it insists."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from mlschool_dagster.capture import sqlite
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.repetition import NOTHING_KNOWN
from mlschool_dagster.capture.store import StoreAwayError, open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.capture.samples import NOON, WINDOW, capture


def test_the_folder_is_created(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/new/folder/captures.db").close()
    assert (tmp_path / "new/folder/captures.db").is_file()


def test_a_relative_uri_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///captures.db").close()
    assert (tmp_path / "captures.db").is_file()


@pytest.mark.parametrize("uri", ["redis://somewhere", "captures.db", "sqlite:///", "sqlite://"])
def test_a_uri_of_no_store_is_told(uri: str) -> None:
    with pytest.raises(UserError, match="sqlite:///path/to/file"):
        open_store(uri)


def test_a_file_of_another_kind_is_told_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    file.write_bytes(b"a diary, not a database" * 100)
    with pytest.raises(UserError, match=r"captures\.db cannot be opened"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes().startswith(b"a diary")


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="folder of the capture store"):
        open_store(f"sqlite:///{tmp_path}/file/captures.db")


def test_the_format_of_a_newer_release_is_told(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/captures.db"
    open_store(uri).close()
    with sqlite3.connect(tmp_path / "captures.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="format 99"):
        open_store(uri)


def test_a_fresh_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/captures.db"

    def work(number: int) -> None:
        store = open_store(uri)
        store.append([capture(str(number))])
        store.close()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    store = open_store(uri)
    assert store.windows() == {WINDOW: 16}
    store.close()


def test_a_file_that_is_gone_is_told_and_not_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "odd #name?.db"
    store = open_store(f"sqlite:///{file}")
    file.unlink()
    with pytest.raises(UserError, match="is gone"):
        store.windows()
    store.close()
    assert not file.exists()


def test_the_file_is_read_while_a_write_is_under_way(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    store = open_store(f"sqlite:///{file}")
    store.append([capture("a")])
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE captures SET endpoint = 'other'")
    assert list(store.read(WINDOW)["endpoint"]) == ["penguins"]
    other.rollback()
    other.close()
    store.close()


def test_writing_goes_on_where_a_file_was_deleted(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    store = open_store(f"sqlite:///{file}")
    store.append([capture("a")])
    cursor = store.captures_since(None).cursor
    for leftover in tmp_path.iterdir():
        leftover.unlink()
    store.append([capture("b")])
    assert list(store.read(WINDOW)["event_id"]) == ["b"]
    assert store.captures_since(cursor).windows == {WINDOW}
    store.close()


def test_writing_goes_on_in_a_file_that_took_the_place(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    store.append([capture("a")])
    other = open_store(f"sqlite:///{tmp_path}/other.db")
    other.append([capture("b")])
    other.close()
    (tmp_path / "other.db").replace(tmp_path / "captures.db")
    store.append([capture("c")])
    store.close()
    again = open_store(f"sqlite:///{tmp_path}/captures.db")
    assert list(again.read(WINDOW)["event_id"]) == ["b", "c"]
    again.close()


def test_a_folder_that_cannot_be_used_is_away(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    store = open_store(f"sqlite:///{folder}/captures.db")
    store.append([capture("a")])
    folder.rename(tmp_path / "elsewhere")
    folder.touch()
    with pytest.raises(StoreAwayError, match="cannot be used"):
        store.append([capture("b")])
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    store.append([capture("c")])
    assert list(store.read(WINDOW)["event_id"]) == ["a", "c"]
    store.close()


def test_a_file_that_stays_locked_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    other = sqlite3.connect(tmp_path / "captures.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreAwayError, match="locked"):
        store.append([capture("a")])
    other.rollback()
    other.close()
    assert store.append([capture("a")]) == NOTHING_KNOWN
    store.close()


def test_a_full_disk_is_away_and_nothing_is_kept(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    store.append([capture("a")])
    connection: sqlite3.Connection = store._connection  # type: ignore[attr-defined]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreAwayError, match="full"):
        store.append([capture(str(i)) for i in range(200)])
    connection.execute("PRAGMA max_page_count = 1000000")
    store.append([capture("b")])
    assert list(store.read(WINDOW)["event_id"]) == ["a", "b"]
    store.close()


VERSION_1 = """
CREATE TABLE store (identity TEXT NOT NULL);
INSERT INTO store VALUES ('0123abcd');
CREATE TABLE captures (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    captured_at INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    model_version TEXT NOT NULL,
    inputs TEXT NOT NULL,
    prediction TEXT NOT NULL,
    confidence REAL NOT NULL,
    probabilities TEXT NOT NULL,
    probe INTEGER NOT NULL
);
CREATE INDEX traffic_by_time ON captures (captured_at) WHERE probe = 0;
CREATE TABLE labels (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    label TEXT NOT NULL,
    labelled_at INTEGER NOT NULL,
    source TEXT NOT NULL,
    UNIQUE (event_id, labelled_at, label, source)
);
INSERT INTO captures VALUES
    (3, 'a', :noon, 'penguins', '3', '{"island":"Biscoe","body_mass_g":5800,"sex":null}', 'Gentoo',
     0.75, '{"Adelie":0.125,"Chinstrap":0.125,"Gentoo":0.75}', 0),
    (7, 'smoke-test-1', :noon, 'penguins', '3', '{}', 'Gentoo', 0.75, '{}', 1);
INSERT INTO labels VALUES (2, 'a', 'Gentoo', :noon, 'expert');
PRAGMA user_version = 1;
"""


def test_a_file_of_version_1_is_brought_up_to_date_in_place(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    with closing(sqlite3.connect(file)) as connection:
        microseconds = str(int(NOON.timestamp()) * 1_000_000)
        connection.executescript(VERSION_1.replace(":noon", microseconds))
    uri = f"sqlite:///{file}"
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(open_store, [uri] * 4))
    store = stores[0]
    frame = store.read(WINDOW)
    assert Capture(*next(frame.itertuples(index=False))) == capture("a")
    assert len(frame) == len(store.read_labels(WINDOW)) == 1
    assert store.captures_since("0123abcd-7").windows == frozenset()
    assert store.captures_since("0123abcd-2").windows == {WINDOW}
    assert store.append([capture("a")]).repeated == {"a": capture("a")}
    assert store.append([capture("b"), capture("a", role=Role.SHADOW)]) == NOTHING_KNOWN
    assert store.captures_since("0123abcd-7").cursor == "0123abcd-9"
    for each in stores:
        each.close()


VERSION_2 = """
DROP INDEX traffic_by_window;
DROP INDEX shadows_by_window;
CREATE INDEX traffic_by_time ON captures (captured_at) WHERE probe = 0 AND role <> 'shadow';
CREATE INDEX shadows_by_time ON captures (captured_at) WHERE probe = 0 AND role = 'shadow';
PRAGMA user_version = 2;
"""


def test_a_file_of_version_2_is_brought_up_to_date_in_place(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    uri = f"sqlite:///{file}"
    store = open_store(uri)
    store.append([capture("a"), capture("a", role=Role.SHADOW)])
    before = store.revision(WINDOW)
    store.close()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(VERSION_2)
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(open_store, [uri] * 4))
    assert stores[0].revision(WINDOW) == before
    assert list(stores[0].read_shadow(WINDOW)["event_id"]) == ["a"]
    with closing(sqlite3.connect(file)) as connection:
        indices = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert {"traffic_by_window", "shadows_by_window"} <= indices
    assert "traffic_by_time" not in indices
    for each in stores:
        each.close()


@pytest.mark.slow
def test_the_log_stays_bounded_while_windows_are_read(tmp_path: Path) -> None:
    """Two readers, one after the other's heels: a snapshot that stays open would stop the log."""
    file = tmp_path / "captures.db"
    store = open_store(f"sqlite:///{file}")
    for number in range(20):
        store.append([capture(f"{number}-{i}") for i in range(1000)])
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            store.read(WINDOW)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    largest = 0
    for number in range(4000):
        store.append([capture(f"live-{number}", timedelta(hours=1))])
        largest = max(largest, file.with_name("captures.db-wal").stat().st_size)
    ended.set()
    for reader in readers:
        reader.join()
    store.close()
    assert largest < 32 * 1024**2
