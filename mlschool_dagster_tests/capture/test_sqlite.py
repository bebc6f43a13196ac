"""What is particular to the store in an SQLite file: how it is opened, and on what it insists."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlschool_dagster.capture.store import open_store
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
