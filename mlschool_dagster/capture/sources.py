"""Capture sources: where others leave captures and labels as objects, and how those are read.

An *object* is a file, or what S3 and Azure keep under a key. A source lists the objects of one
folder at a time, and reads an object from the position that an earlier import has reached. It keeps
no state and writes nothing: `importer` decides which folders to list, and the capture store records
what was read. Every source passes the contract suite ``test_source_contract.py``.
"""

import logging
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.credentials import public_uri
from mlschool_dagster.errors import UserError

log = logging.getLogger(__name__)

CHUNK_LINES = 1000
"""Lines that are read before a source hands out what they hold."""
LONGEST_LINE = 16 * 1024**2
"""Bytes; a longer line is a fault."""
BLOCK = 1024**2
ENDINGS = (".jsonl", ".jsonl.gz")
"""How the names of the objects end that are read; all others are ignored."""

_GZIP = b"\x1f\x8b"
_GZIP_BITS = 31
"""Window size by which zlib expects the gzip format."""
_TOO_LONG = f"it is longer than {LONGEST_LINE // 1024**2} MB"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


# Not frozen: that would make it several times as long to build one, and a folder may hold millions.
@dataclass(slots=True)
class StoredObject:
    """An object as a listing shows it; ``version`` changes whenever its content does."""

    name: str
    """Its path below the source's root, with ``/`` between the parts."""
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as a listing shows it: its path below the source's root."""

    name: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far an object has been read: bytes (unpacked, if it is packed) and whole lines."""

    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Requests that an endpoint refused at one time for one reason."""

    refused_at: datetime
    reason: str
    requests: int = 1


Record = Capture | Label | Refusal


class BadLineError(Exception):
    """A line that cannot be read; its text is the reason, in one sentence without a full stop."""


class NotYetError(Exception):
    """A line that points to what has not arrived yet: the object is read again from this line."""


@dataclass(slots=True)
class ObjectChunk:
    """Rows of a part of an object, and the position after it.

    The last chunk of an object is ``final``. It is ``waiting`` if there is more than could be read
    yet: a half-written line, or (``again``) a line that must be tried at the next import although
    the object does not change.
    """

    end: Position
    records: list[tuple[int, Record]] = field(default_factory=list)
    """Each with the number of its line, counted from 1."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Lines that cannot be read, each with the reason."""
    final: bool = False
    waiting: bool = False
    again: bool = False


class CaptureSource(Protocol):
    """A place where captures or labels arrive.

    Objects may arrive in any order and at any time, however late. An object may grow; what has
    been read of it does not change. Folders whose path ends in the UTC time of their captures, as
    in ``any/prefix/2026/11/20/23``, keep listings short; there may be others.
    """

    @property
    def name(self) -> str:
        """Stable name of this source in the store and in reports; holds no secret."""

    def entries(self, folder: str) -> Iterator[StoredObject | Folder]:
        """Entries of `folder` now, in any order and streamed; ``""`` is the root.

        Only objects that can hold records are listed. A folder that does not exist is empty.

        Raises:
            UserError: the place cannot be reached or listed.
        """

    def read(self, item: StoredObject, start: Position) -> Iterator[ObjectChunk]:
        """The content of `item` after `start`, as far as the listing showed it; the last is final.

        Positions grow from chunk to chunk, and reading from any chunk's ``end`` goes on where that
        chunk ended. An object that has become shorter than `start` is read from its beginning,
        and reported as a fault. One that has gone meanwhile gives no chunk.

        Raises:
            UserError: the place cannot be reached or the object not be read.
        """


class ObjectFiles(Protocol):
    """Folders and bytes of a place that holds objects."""

    @property
    def name(self) -> str:
        """See `CaptureSource.name`."""

    def entries(self, folder: str) -> Iterator[StoredObject | Folder]:
        """See `CaptureSource.entries`; objects of every kind may be listed."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` to before `end`, fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such object.
            UserError: it cannot be read.
        """


class LineParser(Protocol):
    """The format of one line."""

    def __call__(self, line: bytes, object_name: str) -> Iterable[Record]:
        """Rows that `line` of the object called `object_name` holds.

        Raises:
            BadLineError: it cannot be read.
            NotYetError: what it points to has not arrived.
        """


VersionLookup = Callable[[str, datetime], str | None]
"""The version that made a capture that does not name one: from the name of its object and the time
of the capture, None if it is not known."""


def row_event_id(inference_id: str, row: int) -> str:
    """The event id of a request's row where nobody else gave it one."""
    return f"{inference_id}-{row}"


def first_known(*lookups: VersionLookup) -> VersionLookup:
    """Asks `lookups` one after the other."""

    def lookup(object_name: str, captured_at: datetime) -> str | None:
        answers = (each(object_name, captured_at) for each in lookups)
        return next((version for version in answers if version), None)

    return lookup


class JsonLinesSource:
    """Objects with one JSON object a line, plain or gzip, that grow line by line.

    The last line of an object may lack its end: it is read if it is a whole JSON object already
    (half of one never is), else it waits until the object grows.
    """

    def __init__(self, files: ObjectFiles, parse: LineParser) -> None:
        self._files = files
        self._parse = parse

    @property
    def name(self) -> str:
        """See `CaptureSource.name`."""
        return self._files.name

    def entries(self, folder: str) -> Iterator[StoredObject | Folder]:
        """See `CaptureSource.entries`."""
        return (
            entry
            for entry in self._files.entries(folder)
            if isinstance(entry, Folder) or entry.name.endswith(ENDINGS)
        )

    def read(self, item: StoredObject, start: Position) -> Iterator[ObjectChunk]:
        """See `CaptureSource.read`."""
        try:
            yield from self._chunks(item, start)
        except FileNotFoundError:
            return

    def _chunks(self, item: StoredObject, start: Position) -> Iterator[ObjectChunk]:
        # A range of its own is asked for only where the object cannot be read from its beginning.
        first = BLOCK if start.offset == 0 or item.name.endswith(".gz") else len(_GZIP)
        head = self._files.read(item.name, 0, min(first, item.size))
        chunk = ObjectChunk(start)
        if head.startswith(_GZIP):
            blocks = _unpacked(self._blocks(item, head, 0), start.offset)
        elif item.size < start.offset:
            chunk = ObjectChunk(Position())
            chunk.faults.append((0, "it is shorter than what was read of it before, and read anew"))
            blocks = self._blocks(item, b"", 0)
        elif start.offset:
            blocks = self._blocks(item, b"", start.offset)
        else:
            blocks = self._blocks(item, head, 0)
        try:
            for number, line, end in _lines(blocks, chunk.end):
                if end is None:
                    self._add_unfinished(chunk, number, line, item.name)
                    break
                if line is None:
                    chunk.faults.append((number, _TOO_LONG))
                else:
                    self._add(chunk, number, line, item.name)
                chunk.end = Position(end, number)
                if len(chunk.records) + len(chunk.faults) >= CHUNK_LINES:
                    yield chunk
                    chunk = ObjectChunk(chunk.end)
        except NotYetError:
            chunk.waiting = chunk.again = True
        except zlib.error as error:
            chunk.faults.append((chunk.end.line + 1, f"it cannot be unpacked ({error})"))
        chunk.final = True
        yield chunk

    def _add(self, chunk: ObjectChunk, number: int, line: bytes, name: str) -> None:
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line or line.isspace():
            return
        try:
            chunk.records += [(number, record) for record in self._parse(line, name)]
        except BadLineError as error:
            chunk.faults.append((number, str(error)))

    def _add_unfinished(
        self, chunk: ObjectChunk, number: int, line: bytes | None, name: str
    ) -> None:
        if line is None or not _is_object(line):
            chunk.waiting = line is None or not line.isspace()
            return
        self._add(chunk, number, line, name)
        # The line is counted when its end arrives.
        chunk.end = Position(chunk.end.offset + len(line), number - 1)

    def _blocks(self, item: StoredObject, head: bytes, offset: int) -> Iterator[bytes]:
        """The content from `offset` on, of which `head` is there already."""
        yield head
        for start in range(offset + len(head), item.size, BLOCK):
            end = min(start + BLOCK, item.size)
            block = self._files.read(item.name, start, end)
            yield block
            if len(block) < end - start:
                return


def _lines(
    blocks: Iterable[bytes], start: Position
) -> Iterator[tuple[int, bytes | None, int | None]]:
    """The lines in `blocks`: number, text and the offset after it.

    The text is None if it is too long, the offset is None if the line's end has not been written.
    """
    offset, number = start.offset, start.line
    rest = bytearray()
    dropped = 0
    for block in blocks:
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            line = bytes(rest) + block[begin:end] if rest else block[begin:end]
            number += 1
            offset += dropped + len(line) + 1
            yield number, None if dropped else line, offset
            rest.clear()
            dropped = 0
            begin = end + 1
        rest += block[begin:]
        if len(rest) > LONGEST_LINE:
            dropped += len(rest)
            rest.clear()
    if dropped or rest:
        yield number + 1, None if dropped else bytes(rest), None


def _unpacked(blocks: Iterable[bytes], skipped: int) -> Iterator[bytes]:
    """Unpacked content of `blocks` after the first `skipped` bytes; one that is cut ends early."""
    for block in _members(blocks):
        if block[skipped:]:
            yield block[skipped:]
        skipped = max(0, skipped - len(block))


def _members(blocks: Iterable[bytes]) -> Iterator[bytes]:
    unpacking = zlib.decompressobj(wbits=_GZIP_BITS)
    for packed in blocks:
        while packed:
            yield unpacking.decompress(packed, BLOCK)
            packed = unpacking.unconsumed_tail
            if unpacking.eof:
                # Another member may follow, as where somebody appended to the file.
                packed = unpacking.unused_data.lstrip(b"\0")
                unpacking = zlib.decompressobj(wbits=_GZIP_BITS)
    yield unpacking.flush()


def _is_object(line: bytes) -> bool:
    """Whether `line` is a whole JSON object, which no beginning of one is."""
    try:
        return isinstance(orjson.loads(line.removeprefix(_BYTE_ORDER_MARK)), dict)
    except ValueError:
        return False


class FsspecFiles:
    """The objects below `uri`: a local folder, or whatever fsspec knows by its scheme.

    Nothing is contacted before the first use.

    Raises:
        UserError: the scheme is not known, or its driver is not installed.
    """

    def __init__(self, uri: str, setting: str) -> None:
        import fsspec
        from fsspec.core import url_to_fs

        self._setting = setting
        self._shown = public_uri(uri)
        try:
            # A listing that is remembered would hide what arrives.
            self._files, root = url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
        except (ValueError, ImportError) as error:
            scheme = uri.partition("://")[0]
            raise UserError(
                f"{setting} has the scheme {scheme!r}, for which there is no driver ({error}); use "
                "a folder or one of: " + ", ".join(sorted(fsspec.available_protocols())[:40]) + "."
            ) from None
        self._root = root.rstrip("/")
        self._is_local = "file" in _protocols(self._files)

    @property
    def name(self) -> str:
        """See `CaptureSource.name`."""
        return self._shown.rstrip("/") or "/"

    def entries(self, folder: str) -> Iterator[StoredObject | Folder]:
        """See `ObjectFiles.entries`."""
        try:
            yield from self._local(folder) if self._is_local else self._remote(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        except Exception as error:
            # Not every driver raises an OSError for what is wrong with its server.
            raise self._unusable(error) from error

    def read(self, name: str, start: int, end: int) -> bytes:
        """See `ObjectFiles.read`."""
        if start >= end:
            return b""
        try:
            if self._is_local:
                with Path(self._path(name)).open("rb") as file:
                    file.seek(start)
                    return file.read(end - start)
            block: bytes = self._files.cat_file(self._path(name), start=start, end=end)
            return block
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _local(self, folder: str) -> Iterator[StoredObject | Folder]:
        prefix = f"{folder}/" if folder else ""
        # fsspec would hold the whole folder in memory, a dictionary a file.
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.name.isprintable():
                    log.warning(
                        "%r in %s is ignored: its name is no plain text", entry.name, self.name
                    )
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield Folder(prefix + entry.name)
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    version = f"{status.st_mtime_ns}-{status.st_size}"
                    yield StoredObject(prefix + entry.name, status.st_size, version)

    def _remote(self, folder: str) -> Iterator[StoredObject | Folder]:
        beginning = len(self._root) + 1
        for entry in self._files.ls(self._path(folder), detail=True):
            name = entry["name"].rstrip("/")[beginning:]
            if not name or name == folder or name.rpartition("/")[2].startswith("."):
                continue
            if entry["type"] == "directory":
                yield Folder(name)
            else:
                size = int(entry.get("size") or 0)
                yield StoredObject(name, size, f"{_mark(entry)}-{size}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root or "/"

    def _unusable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return UserError(
            f"The place {self.name} of {self._setting} cannot be read ({reason}); check that it is "
            "there and that you may read it."
        )


_MARKS = ("ETag", "etag", "content_md5", "LastModified", "last_modified", "mtime", "created")


def _mark(entry: dict[str, Any]) -> object:
    """Version marker in a listing of fsspec: what changes with the content, besides the size."""
    return next((entry[key] for key in _MARKS if entry.get(key)), "")


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
