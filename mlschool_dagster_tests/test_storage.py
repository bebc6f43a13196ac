"""What every place for files promises, a local folder and a bucket alike."""

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from mlschool_dagster import storage
from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import MARKER
from mlschool_dagster.storage import MANIFEST, Location, checked_uri, location, publish


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Location:
    uri = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "files")
    return location(f"{uri}/below it", cache)


def test_a_file_is_read_as_it_was_written(root: Location) -> None:
    file = root / "folder" / "näme with spaces"
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read()
    with pytest.raises(FileNotFoundError):
        file.local()
    file.write(b"first")
    assert file.exists()
    assert not (root / "folder").exists()
    assert (file.name, file.read()) == ("näme with spaces", b"first")
    assert file.local().read_bytes() == b"first"
    file.write(b"other")
    assert file.read() == b"other"
    file.remove()
    file.remove()
    assert not file.exists()


def test_a_file_is_complete_or_absent(root: Location) -> None:
    def fail(path: Path) -> NoReturn:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    file = root / "file"
    with pytest.raises(KeyboardInterrupt), file.writing() as path:
        fail(path)
    assert not file.exists()
    assert list(root.children()) == []
    file.write(b"whole")
    with pytest.raises(KeyboardInterrupt), file.writing() as path:
        fail(path)
    assert file.read() == b"whole"
    assert [child.name for child in root.children()] == ["file"]


def test_children_are_files_and_folders_in_order(root: Location) -> None:
    for name in ("b", "a", "ab"):
        (root / name / "file").write(b"")
    (root / "c").write(b"")
    assert [child.name for child in root.children()] == ["a", "ab", "b", "c"]
    assert [child.uri for child in (root / "a").children()] == [f"{root.uri}/a/file"]
    assert list((root / "nothing").children()) == []
    assert (root / "a").files() == 1


def test_a_cache_may_be_lost_at_any_time(root: Location, cache: Path) -> None:
    file = root / "file"
    file.write(b"content")
    assert file.read() == b"content"
    shutil.rmtree(cache, ignore_errors=True)
    assert file.read() == b"content"


def test_copies_that_nobody_asks_for_are_dropped(
    s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = location(s3, cache)
    for name in "ab":
        (root / name).write(name.encode())
    (root / "a").read()
    monkeypatch.setattr(storage, "CACHE_SECONDS", -1)
    (root / "b").read()
    assert [path.name for path in cache.glob("*/*")] == ["b"]


def test_only_what_the_platform_made_is_removed(root: Location) -> None:
    ours, theirs, sibling = root / "ours", root / "theirs", root / "ours too"
    assert ours.make_owned()
    assert ours.make_owned()
    assert ours.is_owned()
    (ours / "folder" / "file").write(b"")
    for other in (theirs, sibling):
        (other / "file").write(b"")
        assert not other.make_owned()
        assert not other.is_owned()
        with pytest.raises(UserError, match="was not made by mlschool_dagster"):
            other.remove_owned()
    (theirs / MARKER).write(b"another text")
    assert not theirs.is_owned()
    ours.remove_owned()
    assert [child.name for child in root.children()] == ["ours too", "theirs"]
    with pytest.raises(UserError, match="was not made by mlschool_dagster"):
        (root / "nothing").remove_owned()


def test_a_published_folder_has_its_manifest_last(root: Location, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / MARKER).touch()
    publish(folder, root)
    publish(folder, root)
    assert [child.name for child in root.children()] == ["a", MANIFEST]
    digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert json.loads((root / MANIFEST).read()) == {"sha256": {"a": digest}}


@pytest.mark.parametrize("scheme", ["gs", "http", "hdfs", "memory"])
def test_other_schemes_are_refused(scheme: str, cache: Path) -> None:
    with pytest.raises(UserError, match=rf"MLSCHOOL_FILES is {scheme}://.* is not supported; give"):
        checked_uri(f"{scheme}://somewhere/files", "MLSCHOOL_FILES")
    with pytest.raises(UserError, match="names no bucket"):
        checked_uri("s3:///files", "MLSCHOOL_FILES")


def test_a_password_in_a_refused_uri_is_not_shown() -> None:
    with pytest.raises(UserError) as raised:
        checked_uri("ftp://user:hunter2@host/files", "MLSCHOOL_FILES")
    assert "hunter2" not in str(raised.value)


def test_a_path_and_its_uri_are_one_place(tmp_path: Path) -> None:
    folder = tmp_path / "ä b"
    assert checked_uri(folder.as_uri(), "it") == checked_uri(str(folder), "it") == str(folder)
    assert checked_uri("s3://bucket/prefix/", "it") == "s3://bucket/prefix"


def test_a_missing_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package adlfs; .*mlschool-dagster\[azure\]"):
        location("abfs://container@account.dfs.core.windows.net/files", cache)


def test_a_bucket_that_is_not_there_is_reported_in_a_sentence(s3: str, cache: Path) -> None:
    with pytest.raises(UserError, match="cannot be used") as raised:
        (location("s3://nobody-has-this/prefix", cache) / "file").write(b"")
    assert "\n" not in str(raised.value)
    assert "not-a-secret" not in str(raised.value)
