"""Files below a root that is given by URI: a folder, or a prefix in S3 or in Azure's blob storage.

Belongs here: `Location`, a path-like name of one file or folder below such a root, with one
implementation for local files and one, through universal-pathlib and fsspec, for everything else.
Both promise the same:

- A file is complete or absent. Locally it is written under another name and renamed; remotely it is
  put in a single operation.
- `Location.local` gives the content as a local file, so that Parquet readers work on memory maps
  and pages of the operating system. Locally that is the file itself; of a remote file it is a copy
  in a cache folder, which may be deleted at any time between two runs.
- Only folders that carry the platform's marker are removed (`owned`).

Does not belong here: which files there are (``resources/files.py``).
"""

import hashlib
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote_to_bytes, urlsplit

from mlschool_dagster.atomic import replacing
from mlschool_dagster.credentials import public_uri
from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import (
    MARKER,
    MARKER_TEXT,
    is_owned,
    make_owned,
    not_owned,
    not_removed,
    remove_owned,
)

if TYPE_CHECKING:
    from upath import UPath

SCHEMES = {"s3": ("s3fs", "aws"), "abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure")}
"""Remote schemes, each with the package that speaks it and the extra that installs the package."""

CACHE_SECONDS = 24 * 3600
"""Copies that nobody has asked for in this time are deleted from the cache folder."""

MANIFEST = "manifest.json"
"""Written last into a published folder, with the digest of each of its files."""


def checked_uri(uri: str, subject: str) -> str:
    """`uri` as it is kept: a local path in full, a remote URI without a slash at its end.

    Raises:
        UserError: its scheme is not supported, or it names no bucket; `subject` names it.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return str(Path(os.fsdecode(unquote_to_bytes(parts.path))).resolve())
    if "://" not in uri:
        return str(Path(uri).resolve())
    if parts.scheme not in SCHEMES:
        raise UserError(
            f"{subject} is {public_uri(uri)}, but {parts.scheme}:// is not supported; give a path, "
            f"file://, {', '.join(f'{scheme}://' for scheme in SCHEMES)}."
        )
    if not parts.netloc:
        raise UserError(
            f"{subject} is {uri}, which names no bucket or container; write {parts.scheme}://"
            "name/prefix."
        )
    return uri.rstrip("/")


def is_remote(uri: str) -> bool:
    """Whether `uri` is neither a path nor a ``file://`` URI."""
    return "://" in uri and urlsplit(uri).scheme != "file"


class Location(ABC):
    """A file or folder below a root, which need not exist; ``location / "name"`` is below it."""

    uri: str
    """The path of a local file, else the URI; a server elsewhere can be given the latter."""

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rpartition("/")[2]

    @abstractmethod
    def __truediv__(self, name: str) -> Self:
        """The location `name` below this one."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a file here."""

    @abstractmethod
    def local(self) -> Path:
        """A local file with this one's content, to be read and left as it is.

        Raises:
            FileNotFoundError: there is no file here.
        """

    @abstractmethod
    def writing(self) -> Any:
        """A context manager: a path to write; when its block ends without error, it is this file.

        Folders above are created.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the file, if there is one."""

    @abstractmethod
    def modified(self) -> datetime:
        """When the file was written.

        Raises:
            FileNotFoundError: there is no file here.
        """

    @abstractmethod
    def children(self) -> Sequence[Self]:
        """Contents of this folder, sorted by name; empty if it does not exist."""

    @abstractmethod
    def files(self) -> int:
        """Number of files in this folder and its subfolders, without the marker."""

    @abstractmethod
    def make_owned(self) -> bool:
        """Mark this folder as the platform's, which exists then; see `owned.make_owned`.

        Returns:
            Whether it carries the marker now: no, if somebody else's files are in it.
        """

    @abstractmethod
    def is_owned(self) -> bool:
        """Whether this folder carries the platform's marker."""

    @abstractmethod
    def remove_owned(self) -> None:
        """Remove this folder, which carries the marker, with everything in it; the marker last.

        Raises:
            UserError: it does not carry the marker, or something in it cannot be removed.
        """

    def read(self) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: there is no file here.
        """
        return self.local().read_bytes()

    def write(self, content: bytes) -> None:
        """Make `content` the file's."""
        with self.writing() as path:
            path.write_bytes(content)


def location(uri: str, cache: Path, subject: str = "The place for files") -> Location:
    """The location at `uri`; copies of remote files are kept in the folder `cache`.

    Sentences call it `subject`.

    Raises:
        UserError: the scheme is not supported, or its package is not installed.
    """
    uri = checked_uri(uri, subject)
    if not is_remote(uri):
        return LocalLocation(Path(uri))
    package, extra = SCHEMES[urlsplit(uri).scheme]
    if find_spec(package) is None:
        raise UserError(
            f"{subject} is {uri}, which needs the package {package}; install it with "
            f"pip install 'mlschool-dagster[{extra}]'."
        )
    from upath import UPath

    # Other machines write too: a listing that was cached a moment ago may be wrong.
    return RemoteLocation(UPath(uri, use_listings_cache=False), uri, cache)


class LocalLocation(Location):
    """A location in the local file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.uri = str(path)

    def __truediv__(self, name: str) -> "LocalLocation":
        return LocalLocation(self._path / name)

    def exists(self) -> bool:
        """See `Location`."""
        return self._path.is_file()

    def local(self) -> Path:
        """See `Location`."""
        if not self._path.is_file():
            raise FileNotFoundError(self.uri)
        return self._path

    def writing(self) -> Any:
        """See `Location`."""
        return replacing(self._path)

    def remove(self) -> None:
        """See `Location`."""
        self._path.unlink(missing_ok=True)

    def modified(self) -> datetime:
        """See `Location`."""
        return datetime.fromtimestamp(self._path.stat().st_mtime, UTC)

    def children(self) -> "Sequence[LocalLocation]":
        """See `Location`."""
        if not self._path.is_dir():
            return ()
        return [LocalLocation(path) for path in sorted(self._path.iterdir())]

    def files(self) -> int:
        """See `Location`."""
        return sum(p.is_file() and p.name != MARKER for p in self._path.rglob("*"))

    def make_owned(self) -> bool:
        """See `Location`."""
        return make_owned(self._path)

    def is_owned(self) -> bool:
        """See `Location`."""
        return is_owned(self._path)

    def remove_owned(self) -> None:
        """See `Location`."""
        remove_owned(self._path)


class RemoteLocation(Location):
    """A location in an object store; a folder is what names have in common up to a slash."""

    def __init__(self, path: "UPath", uri: str, cache: Path) -> None:
        self._path = path
        self.uri = uri
        self._cache = cache

    def __truediv__(self, name: str) -> "RemoteLocation":
        return RemoteLocation(self._path / name, f"{self.uri}/{name}", self._cache)

    def exists(self) -> bool:
        """See `Location`."""
        with self._reachable():
            return bool(self._path.fs.isfile(self._path.path))

    def local(self) -> Path:
        """See `Location`."""
        with self._reachable(FileNotFoundError):
            # A digest of all that the store says of the file: of its content and its age.
            state = self._path.fs.ukey(self._path.path)
            key = hashlib.sha256(f"{self.uri} {state}".encode()).hexdigest()
            copy = self._cache / key / self.name
            if not copy.exists():
                self._drop_old_copies()
                with replacing(copy) as temporary:
                    self._path.fs.get_file(self._path.path, str(temporary))
        os.utime(copy.parent)
        return copy

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """See `Location`."""
        self._cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._cache) as folder:
            path = Path(folder, self.name)
            yield path
            with self._reachable():
                self._path.fs.put_file(str(path), self._path.path)

    def remove(self) -> None:
        """See `Location`."""
        with suppress(FileNotFoundError), self._reachable(FileNotFoundError):
            self._path.fs.rm_file(self._path.path)

    def modified(self) -> datetime:
        """See `Location`."""
        with self._reachable(FileNotFoundError):
            modified: datetime = self._path.fs.modified(self._path.path)
            return modified.astimezone(UTC)

    def children(self) -> "Sequence[RemoteLocation]":
        """See `Location`."""
        with self._reachable():
            try:
                paths = self._path.fs.ls(self._path.path, detail=False)
            except FileNotFoundError:
                return ()
        names = {str(path).rstrip("/").rpartition("/")[2] for path in paths}
        return [self / name for name in sorted(names - {"", self.name})]

    def files(self) -> int:
        """See `Location`."""
        return sum(not name.endswith(f"/{MARKER}") for name in self._names())

    def make_owned(self) -> bool:
        """See `Location`."""
        if self.is_owned():
            return True
        if self._names():
            return False
        (self / MARKER).write(MARKER_TEXT.encode())
        return True

    def is_owned(self) -> bool:
        """See `Location`."""
        try:
            return (self / MARKER).read() == MARKER_TEXT.encode()
        except FileNotFoundError:
            return False

    def remove_owned(self) -> None:
        """See `Location`."""
        if not self.is_owned():
            raise not_owned(self.uri)
        marker = (self / MARKER)._path.path
        failures: dict[str, str] = {}
        # The marker's name goes last, so that a removal that was interrupted can be repeated.
        for name in [name for name in self._names() if name != marker]:
            try:
                self._path.fs.rm_file(name)
            except Exception as error:
                failures[name] = type(error).__name__
        if failures:
            raise not_removed(self.uri, failures)
        with self._reachable():
            self._path.fs.rm_file(marker)

    def _names(self) -> list[str]:
        """The names of all files below, without the protocol, as fsspec has them."""
        with self._reachable():
            try:
                return sorted(self._path.fs.find(f"{self._path.path.rstrip('/')}/"))
            except FileNotFoundError:
                return []

    @contextmanager
    def _reachable(self, *answers: type[Exception]) -> Iterator[None]:
        """Turn errors of the file store into `UserError`, except `answers`, which pass."""
        try:
            yield
        except answers:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or "no reason given"
            raise UserError(
                f"{self.uri} cannot be used ({type(error).__name__}: {text}); check the address, "
                "and the credentials of this process."
            ) from None

    def _drop_old_copies(self) -> None:
        if not self._cache.is_dir():
            return
        for folder in self._cache.iterdir():
            try:
                if folder.stat().st_mtime < time.time() - CACHE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                # Another process was faster.
                continue


def publish(folder: Path, destination: Location) -> None:
    """Copy the files in `folder` to `destination`, and a manifest of their digests after them.

    A destination without a manifest is incomplete. Copying again what is there changes nothing.
    """
    digests = content_digests(folder)
    for name in digests:
        with (destination / name).writing() as path:
            shutil.copyfile(folder / name, path)
    manifest = json.dumps({"sha256": digests}, indent=2, sort_keys=True)
    (destination / MANIFEST).write(manifest.encode())


def content_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in `folder`, by name, in hexadecimal; the marker is none of them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MARKER
    }
