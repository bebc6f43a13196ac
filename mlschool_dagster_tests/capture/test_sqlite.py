"""What is particular to the store in an SQLite file: how it is opened, and on what it insists."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlschool_dagster.capture import sqlite
from mlschool_dagster.capture.idempotency import NO_DUPLICATES
from mlschool_dagster.capture.store import InvalidCaptureError, StoreUnavailableError, open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.capture.samples import WINDOW, capture


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
def test_a_uri_of_no_store_is_reported(uri: str) -> None:
    with pytest.raises(UserError, match="sqlite:///path/to/file"):
        open_store(uri)


def test_a_file_of_another_kind_is_reported_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "captures.db"
    file.write_bytes(b"a diary, not a database" * 100)
    with pytest.raises(UserError, match=r"captures\.db cannot be opened"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes().startswith(b"a diary")


def test_a_file_where_the_folder_should_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="folder of the capture store"):
        open_store(f"sqlite:///{tmp_path}/file/captures.db")


@pytest.mark.parametrize("version", [2, 99])
def test_the_format_of_another_release_is_named(tmp_path: Path, version: int) -> None:
    uri = f"sqlite:///{tmp_path}/captures.db"
    open_store(uri).close()
    with sqlite3.connect(tmp_path / "captures.db") as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(UserError, match=f"format {version}"):
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


def test_a_file_that_is_gone_is_reported_and_not_made_anew(tmp_path: Path) -> None:
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


class Moved:
    """Ways to remove a file, and what remains at its path."""

    @staticmethod
    def renamed(file: Path) -> Path:
        return file.rename(file.with_name("moved.db"))

    @staticmethod
    def to_another_folder(file: Path) -> Path:
        (file.parent / "folder").mkdir()
        return file.rename(file.parent / "folder" / file.name)

    @staticmethod
    def with_its_folder(file: Path) -> Path:
        return file.parent.rename(file.parent.with_name("elsewhere")) / file.name

    @staticmethod
    def replaced(file: Path) -> Path:
        other = open_store(f"sqlite:///{file.parent}/other.db")
        other.append([capture("other")])
        other.close()
        moved = file.with_name("moved.db")
        moved.hardlink_to(file)
        file.with_name("other.db").replace(file)
        return moved

    @staticmethod
    def by_its_link(file: Path) -> Path:
        moved = file.resolve()
        file.unlink()
        file.symlink_to(moved.with_name("next.db"))
        return moved


MOVES = [Moved.renamed, Moved.to_another_folder, Moved.with_its_folder, Moved.replaced]


@pytest.fixture(params=[False, True], ids=["a file", "a link"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a store is to be: nothing, or a link to where it may be made."""
    (tmp_path / "store").mkdir()
    if request.param:
        (tmp_path / "store/captures.db").symlink_to(tmp_path / "real.db")
    return tmp_path / "store/captures.db"


def everything_in(file: Path) -> list[str]:
    """The events in `file` itself, whatever lies beside it."""
    alone = file.with_name("alone.db")
    shutil.copy(file, alone)
    with closing(sqlite3.connect(alone)) as connection:
        return [event for (event,) in connection.execute("SELECT event_id FROM captures")]


@pytest.mark.parametrize("move", [*MOVES, Moved.by_its_link])
@pytest.mark.parametrize("writers", [1, 3])
def test_a_file_that_is_moved_away_keeps_all_that_it_was_given(
    tmp_path: Path, move: Callable[[Path], Path], writers: int
) -> None:
    (tmp_path / "store").mkdir()
    file = tmp_path / "store/captures.db"
    if move is Moved.by_its_link:
        file.symlink_to(tmp_path / "real.db")
    stores = [open_store(f"sqlite:///{file}") for _ in range(writers)]
    kept = [f"{number}-{writer}" for number in range(50) for writer in range(writers)]
    for event in kept:
        stores[int(event.partition("-")[2])].append([capture(event)])
    moved = move(file)
    for writer, store in enumerate(stores):
        store.append([capture(f"after-{writer}")])
    assert everything_in(moved) == kept
    for store in stores:
        store.close()
    again = open_store(f"sqlite:///{file}")
    assert set(again.read(WINDOW)["event_id"]) - {"other"} == {
        f"after-{writer}" for writer in range(writers)
    }
    again.close()
    assert everything_in(moved) == kept


def test_what_is_written_while_the_file_is_moved_is_kept_in_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, moved = tmp_path / "captures.db", tmp_path / "moved.db"
    store = open_store(f"sqlite:///{file}")
    insert = sqlite._insert

    def insert_and_move(*arguments: Any) -> None:
        insert(*arguments)
        if not moved.exists():
            file.rename(moved)

    monkeypatch.setattr(sqlite, "_insert", insert_and_move)
    store.append([capture("a")])
    assert everything_in(moved) == ["a"]
    store.append([capture("b")])
    store.close()
    assert everything_in(file) == ["b"]


def test_what_is_written_while_the_file_is_deleted_is_kept_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "captures.db"
    store = open_store(f"sqlite:///{file}")
    insert = sqlite._insert
    deleted: list[bool] = []

    def insert_and_delete(*arguments: Any) -> None:
        insert(*arguments)
        if not deleted:
            deleted.append(True)
            file.unlink()

    monkeypatch.setattr(sqlite, "_insert", insert_and_delete)
    store.append([capture("a")])
    store.close()
    assert everything_in(file) == ["a"]


@pytest.mark.parametrize("is_killed", [False, True], ids=["noticed", "noticed too late"])
def test_the_log_of_a_file_on_another_disk_is_kept_and_completes_it(
    tmp_path: Path, is_killed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Moving to another disk is a copy and a deletion; killed, nothing checkpoints the log."""
    file, moved = tmp_path / "captures.db", tmp_path / "moved.db"
    store = open_store(f"sqlite:///{file}")
    for event in "abc":
        store.append([capture(event)])
    moved.write_bytes(file.read_bytes())
    file.unlink()
    if is_killed:
        open_store(f"sqlite:///{file}").close()
    store.append([capture("d")])
    store.close()
    assert everything_in(file) == ["d"]
    (aside,) = tmp_path.glob("captures.db-wal.*")
    assert str(aside) in str([vars(record) for record in caplog.records])
    aside.rename(tmp_path / "moved.db-wal")
    again = open_store(f"sqlite:///{moved}")
    assert list(again.read(WINDOW)["event_id"]) == ["a", "b", "c"]
    again.close()


def test_a_file_is_not_left_while_its_log_cannot_be_written_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    file, moved = tmp_path / "captures.db", tmp_path / "moved.db"
    store = open_store(f"sqlite:///{file}")
    store.append([capture("a")])
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM captures").fetchall()
        store.append([capture("b")])
        file.rename(moved)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="cannot be used"):
                store.append([capture("c")])
    store.append([capture("c")])
    store.close()
    assert everything_in(moved) == ["a", "b"]
    assert everything_in(file) == ["c"]


def test_an_idle_store_notices_that_its_file_was_moved(tmp_path: Path) -> None:
    file, moved = tmp_path / "captures.db", tmp_path / "moved.db"
    store = open_store(f"sqlite:///{file}")
    store.append([capture("a")])
    file.rename(moved)
    assert store.append([]) == NO_DUPLICATES
    assert everything_in(moved) == ["a"]
    store.close()


def test_a_store_that_is_closed_is_whole_in_its_file(file: Path) -> None:
    store = open_store(f"sqlite:///{file}")
    store.append([capture("a")])
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM captures").fetchall()
        store.close()
        assert everything_in(file) == ["a"]


def test_reading_a_file_in_the_place_of_another_mixes_them_not(tmp_path: Path) -> None:
    file, moved = tmp_path / "captures.db", tmp_path / "moved.db"
    store, other = open_store(f"sqlite:///{file}"), open_store(f"sqlite:///{tmp_path}/other.db")
    other.append([capture("other")])
    other.close()
    store.append([capture("a")])
    moved.hardlink_to(file)
    (tmp_path / "other.db").replace(file)
    with suppress(UserError):
        # Whatever it sees before the writer has noticed.
        store.windows()
    store.append([capture("b")])
    store.close()
    assert everything_in(moved) == ["a"]
    assert everything_in(file) == ["other", "b"]


@pytest.mark.parametrize("variables", [999, 100, 11])
def test_a_library_that_takes_few_variables_keeps_batches_of_any_size(
    tmp_path: Path, variables: int
) -> None:
    store = sqlite.SqliteStore(tmp_path / "captures.db")
    store._connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, variables)
    for size in (1, 90, 91, 120, 121, 1000):
        store.append([capture(f"{size}-{i}") for i in range(size)])
    store.append([capture("1000-0"), capture("last")])
    assert store.count(WINDOW) == 1 + 90 + 91 + 120 + 121 + 1000 + 1
    store.close()


@pytest.mark.parametrize("odd", [2**70, "\ud800"])
def test_what_can_never_be_kept_is_no_absence_of_the_store(tmp_path: Path, odd: Any) -> None:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    with pytest.raises(InvalidCaptureError, match="does not take"):
        store.append([capture("a"), replace(capture("b"), confidence=odd)])
    assert store.append([capture("a")]) == NO_DUPLICATES
    assert list(store.read(WINDOW)["event_id"]) == ["a"]
    store.close()


def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    store = open_store(f"sqlite:///{folder}/captures.db")
    store.append([capture("a")])
    folder.rename(tmp_path / "elsewhere")
    folder.touch()
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        store.append([capture("b")])
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    store.append([capture("c")])
    assert list(store.read(WINDOW)["event_id"]) == ["a", "c"]
    store.close()


def test_a_file_that_stays_locked_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    other = sqlite3.connect(tmp_path / "captures.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        store.append([capture("a")])
    other.rollback()
    other.close()
    assert store.append([capture("a")]) == NO_DUPLICATES
    store.close()


def test_a_full_disk_is_unavailable_and_nothing_is_kept(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    store.append([capture("a")])
    connection: sqlite3.Connection = store._connection  # type: ignore[attr-defined]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailableError, match="full"):
        store.append([capture(str(i)) for i in range(200)])
    connection.execute("PRAGMA max_page_count = 1000000")
    store.append([capture("b")])
    assert list(store.read(WINDOW)["event_id"]) == ["a", "b"]
    store.close()


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
