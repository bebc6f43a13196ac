"""Only what carries the platform's own marker is ever removed, and no link is followed."""

import os
from pathlib import Path

import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import MARKER, is_owned, make_owned, remove_owned


def test_what_was_made_is_private_marked_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert make_owned(folder)
    assert make_owned(folder)
    assert is_owned(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "file").touch()
    remove_owned(folder)
    assert not folder.exists()


def test_an_empty_folder_becomes_the_platforms(tmp_path: Path) -> None:
    assert make_owned(tmp_path)
    assert is_owned(tmp_path)


@pytest.mark.parametrize("what", ["folder", "link", "file", "link to nothing", "nothing"])
def test_what_somebody_else_made_is_left_as_it_is(tmp_path: Path, what: str) -> None:
    foreign, path = tmp_path / "foreign", tmp_path / "path"
    foreign.mkdir()
    (foreign / "precious").touch()
    if what == "folder":
        path = foreign
    elif what == "link":
        path.symlink_to(foreign)
    elif what == "file":
        path.touch()
    elif what == "link to nothing":
        path.symlink_to(tmp_path / "nowhere")
    if what != "nothing":
        assert not make_owned(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="was not made by mlschool_dagster"):
        remove_owned(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_what_the_platform_made_is_not_what_it_made(tmp_path: Path) -> None:
    make_owned(tmp_path / "ours")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "ours")
    with pytest.raises(UserError):
        remove_owned(link)
    assert is_owned(tmp_path / "ours")


@pytest.mark.parametrize("content", ["", "hello", "mlschool_dagster made this folder"])
def test_a_file_of_the_markers_name_is_no_marker(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    assert not is_owned(tmp_path)


def test_a_marker_that_is_a_link_is_none(tmp_path: Path) -> None:
    make_owned(tmp_path / "ours")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / MARKER).symlink_to(tmp_path / "ours" / MARKER)
    assert not is_owned(foreign)


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious").touch()
    folder = tmp_path / "folder"
    make_owned(folder)
    (folder / "deep").mkdir()
    for place in (folder, folder / "deep"):
        (place / "to a folder").symlink_to(foreign)
        (place / "to a file").symlink_to(foreign / "precious")
        (place / "to nothing").symlink_to(tmp_path / "nowhere")
    remove_owned(folder)
    assert not folder.exists()
    assert (foreign / "precious").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_what_cannot_be_removed_is_reported_and_can_be_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    make_owned(folder)
    locked = folder / "locked"
    locked.mkdir()
    (locked / "file").touch()
    locked.chmod(0o500)
    with pytest.raises(UserError, match=r"Not all of .*locked/file .Permission denied"):
        remove_owned(folder)
    assert is_owned(folder)
    locked.chmod(0o700)
    remove_owned(folder)
    assert not folder.exists()
