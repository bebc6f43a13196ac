"""Ownership markers: only folders that the platform made are ever deleted.

Belongs here: making, recognising and removing such a folder. A folder that may be deleted
later is made by `make_owned` and deleted by `remove_owned`, and by nothing else. Does not
belong here: when something is to be deleted.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from mlschool_dagster.errors import UserError

MARKER = ".made-by-mlschool"
PRIVATE = 0o077
"""The umask of every process that writes state: nobody but its user reads it."""
MARKER_TEXT = "mlschool_dagster made this folder and may delete it, with everything in it.\n"
_SHOWN = 3
"""Most names that a sentence quotes."""


def make_owned(folder: Path, recognise: Callable[[Path], bool] = lambda _: False) -> bool:
    """Create `folder` for this user alone (mode 0700) and mark it as the platform's.

    A folder that exists is marked only if it is empty, or if `recognise` says by its content that
    an earlier release made it; any other stays as it is.

    Returns:
        Whether the folder carries the marker now.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if is_owned(folder):
            return True
        if folder.is_symlink() or not folder.is_dir():
            return False
        if not (_is_empty(folder) or recognise(folder)):
            return False
    (folder / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
    return True


def is_owned(folder: Path) -> bool:
    """Whether `folder` is a folder, not a link to one, that carries the platform's marker."""
    marker = folder / MARKER
    if folder.is_symlink() or marker.is_symlink() or not marker.is_file():
        return False
    with marker.open("rb") as file:
        return file.read(len(MARKER_TEXT) + 1) == MARKER_TEXT.encode()


def remove_owned(folder: Path) -> None:
    """Remove a folder that carries the marker, with everything in it.

    Links in it are removed, never followed. The marker goes last, so that a removal that was
    interrupted can be repeated.

    Raises:
        UserError: the folder does not carry the marker, or something in it cannot be removed.
    """
    if not is_owned(folder):
        raise not_owned(folder)
    failures: dict[str, str] = {}

    def note(_function: object, path: str, error: object) -> None:
        cause = error[1] if isinstance(error, tuple) else error
        failures.setdefault(path, getattr(cause, "strerror", None) or type(cause).__name__)

    for path in folder.iterdir():
        if path.name == MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=note)
        else:
            _try(path.unlink, path, note)
    if not failures:
        _try(lambda: shutil.rmtree(folder), folder, note)
    if failures:
        raise not_removed(folder, failures)


def not_owned(folder: Path | str) -> UserError:
    """The error of removing a folder without the marker."""
    return UserError(
        f"{folder} was not made by mlschool_dagster (it has no {MARKER}), and is left as it is; if "
        "nothing in it is needed, delete it yourself."
    )


def not_removed(folder: Path | str, failures: Mapping[str, str]) -> UserError:
    """The error of removing a folder of which some files, each with its reason, remain."""
    shown = ", ".join(f"{path} ({why})" for path, why in list(failures.items())[:_SHOWN])
    more = f" and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    return UserError(
        f"Not all of {folder} could be removed: {shown}{more}; change their permissions, or end "
        "what uses them, and try again."
    )


def _try(remove: Callable[[], None], path: Path, note: Callable[..., None]) -> None:
    try:
        remove()
    except OSError as error:
        note(remove, str(path), error)


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None
