"""`make clean` removes the state that the platform made and nothing else, in any settings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlschool_dagster.owned import MARKER, is_owned
from mlschool_dagster.settings import ROOT, Settings
from mlschool_dagster_tests.platform import foreign_environment


def clean(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """``python -m mlschool_dagster.local clean``, run in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "mlschool_dagster.local", "clean"],
        cwd=folder,
        env={**foreign_environment(), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def make_clean(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """``make clean`` in `folder`, where nothing is installed."""
    shutil.copy(ROOT / "Makefile", folder)
    return subprocess.run(
        ["make", "clean"],
        cwd=folder,
        env={**foreign_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    folder = tmp_path / "foreign"
    (folder / ".git").mkdir(parents=True)
    (folder / "precious").write_text("years of work")
    return folder


@pytest.mark.parametrize("setting", ["{}", "{}/link", ".", "../foreign", "{}/.git/.."])
def test_a_foreign_folder_is_left_as_it_is(foreign: Path, tmp_path: Path, setting: str) -> None:
    (foreign / "link").symlink_to(foreign)
    before = contents(tmp_path)
    done = clean(foreign, MLSCHOOL_HOME=setting.format(foreign))
    assert done.returncode == 1
    assert "was not made by mlschool_dagster" in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_folder_of_a_home_is_left_as_it_is(foreign: Path) -> None:
    before = contents(foreign)
    done = clean(foreign, MLSCHOOL_HOME="~", HOME=str(foreign))
    assert done.returncode == 1
    assert "MLSCHOOL_HOME is " in done.stderr and "name a folder of its own" in done.stderr
    assert contents(foreign) == before


def test_what_the_platform_made_is_removed(tmp_path: Path, foreign: Path) -> None:
    home = tmp_path / "home"
    settings = Settings.from_environment({"MLSCHOOL_HOME": str(home)})
    assert settings.make_home()
    (home / "files").symlink_to(foreign)
    done = clean(tmp_path, MLSCHOOL_HOME="home")
    assert (done.returncode, done.stderr) == (0, "")
    assert not home.exists()
    assert (foreign / "precious").exists()


def test_what_an_earlier_release_made_is_known_by_what_it_holds(untouched: Path) -> None:
    home = shutil.copytree(untouched, untouched.parent / "earlier")
    (home / MARKER).unlink()
    foreign = shutil.copytree(home, untouched.parent / "mixed")
    (foreign / "thesis.txt").touch()
    assert clean(home.parent, MLSCHOOL_HOME=str(home)).returncode == 0
    assert not home.exists()
    before = contents(foreign)
    assert clean(home.parent, MLSCHOOL_HOME=str(foreign)).returncode == 1
    assert contents(foreign) == before


def test_nothing_to_remove_is_no_fault(tmp_path: Path) -> None:
    assert clean(tmp_path, MLSCHOOL_HOME=str(tmp_path / "none")).returncode == 0
    assert clean(tmp_path, MLSCHOOL_HOME=str(tmp_path)).returncode == 0
    assert tmp_path.exists()


@pytest.mark.parametrize("setting", ["", ".", "{}", "~"])
def test_without_packages_a_foreign_folder_is_left_as_it_is(foreign: Path, setting: str) -> None:
    shutil.copy(ROOT / "Makefile", foreign)
    (foreign / ".mlschool").mkdir()
    (foreign / ".mlschool" / "notes").touch()
    before = contents(foreign)
    make_clean(foreign, MLSCHOOL_HOME=setting.format(foreign), VENV="")
    assert contents(foreign) == before


def test_without_packages_what_the_platform_made_is_removed(foreign: Path) -> None:
    settings = Settings.from_environment({"MLSCHOOL_HOME": str(foreign / ".mlschool")})
    settings.make_home()
    assert is_owned(settings.home)
    assert make_clean(foreign, MLSCHOOL_HOME="").returncode == 0
    assert not settings.home.exists()
    assert (foreign / "precious").exists()
