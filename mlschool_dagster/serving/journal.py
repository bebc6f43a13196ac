"""An append-only journal of captures on the local disk, for as long as their store is away.

A journal is a folder of its owner's: a lock that the owner holds while it lives, and segments in
which each line is one batch of captures with its checksum. A batch is on disk before `append`
returns. The journal of an owner that died is adopted by whoever comes first.
"""

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import orjson

from mlschool_dagster.atomic import sync_folder
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.repetition import EventKey, key_of, settle
from mlschool_dagster.capture.store import Appended

SEGMENT_BYTES = 4 * 1024**2
DAMAGED_FOLDER = "damaged"

log = logging.getLogger(__name__)


class JournalFullError(Exception):
    """The journals of a folder have reached their limit; nothing was kept."""


@dataclass(slots=True)
class _Segment:
    """One file: ``size`` bytes of it count, ``lines`` says where each of its events is."""

    path: Path
    size: int = 0
    lines: dict[EventKey, int] = field(default_factory=dict)
    is_damaged: bool = False


class Journal:
    """A journal in `folder`, whose lock the caller holds as the file descriptor `lock`.

    One thread may append while another takes out. All journals beside it share `limit_bytes`.
    """

    def __init__(self, folder: Path, lock: int, limit_bytes: int) -> None:
        self._folder = folder
        self._lock = lock
        self._limit = limit_bytes
        self._segments = [_Segment(p, p.stat().st_size) for p in sorted(folder.glob("*.jsonl"))]
        self._changing = threading.Lock()
        self._file = -1
        self._done = self._reached = 0

    @classmethod
    def begin(cls, home: Path, limit_bytes: int) -> "Journal":
        """A new journal in a folder of its own below `home`.

        Raises:
            OSError: the disk does not take it.
        """
        while True:
            folder = home / f"{uuid4().hex}.journal"
            folder.mkdir(parents=True)
            # Someone who looks for dead owners may have found the folder before its lock.
            if (lock := _try_lock(folder)) is not None:
                sync_folder(home.parent)
                sync_folder(home)
                return cls(folder, lock, limit_bytes)

    @classmethod
    def adopt(cls, home: Path, limit_bytes: int) -> "Journal | None":
        """A journal below `home` whose owner is dead, the oldest one; None if there is none."""
        for folder in sorted(home.glob("*.journal"), key=_changed):
            if (lock := _try_lock(folder)) is not None:
                return cls(folder, lock, limit_bytes)
        return None

    @property
    def size(self) -> int:
        """How many bytes the journal keeps."""
        with self._changing:
            return sum(segment.size for segment in self._segments)

    def append(self, captures: Sequence[Capture]) -> Appended:
        """Keep all of `captures` or none, by the rule of `CaptureStore.append`; durable on return.

        Only what the journal itself still holds counts as known.

        Raises:
            JournalFullError: the limit is reached.
            OSError: the disk failed.
        """
        appended, new = settle(captures, self._known(captures))
        if new:
            self._write(_line(new), new)
        return appended

    def oldest(self, most: int) -> list[Capture]:
        """The captures appended first: whole batches, until there are `most` or more."""
        self._reached = self._done
        captures: list[Capture] = []
        while len(captures) < most and (line := self._next_line()):
            segment, text = line
            if (batch := _captures_of(text)) is not None:
                captures += batch
            elif text.endswith(b"\n"):
                segment.is_damaged = True
            # A line without its end was being written when its owner died: nobody was told that
            # it is kept.
        return captures

    def forget(self) -> None:
        """Let go of what `oldest` returned last: it is safe elsewhere."""
        with self._changing:
            self._done = self._reached
            while len(self._segments) > 1 and self._done >= self._segments[0].size:
                retired = self._segments.pop(0)
                self._done -= retired.size
                self._reached = self._done
                self._retire(retired)

    def discard(self) -> None:
        """End the journal and remove it; everything in it is safe elsewhere."""
        with self._changing:
            for segment in self._segments:
                self._retire(segment)
            self._segments = []
        with suppress(FileNotFoundError):
            (self._folder / "lock").unlink()
            self._folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let go of the journal and leave what it holds to whoever adopts it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        os.close(self._lock)

    def _known(self, captures: Sequence[Capture]) -> dict[EventKey, Capture]:
        known: dict[EventKey, Capture] = {}
        with self._changing:
            for key in set(map(key_of, captures)):
                for segment in self._segments:
                    if key in segment.lines:
                        batch = _captures_of(_line_at(segment, segment.lines[key])) or []
                        known |= {k: c for c in batch if (k := key_of(c)) == key}
        return known

    def _write(self, line: bytes, captures: Sequence[Capture]) -> None:
        if size_of_all(self._folder.parent) + len(line) > self._limit:
            raise JournalFullError(f"The journal holds its {self._limit} bytes.")
        if self._file < 0 or self._segments[-1].size + len(line) > SEGMENT_BYTES:
            self._begin_segment()
        segment = self._segments[-1]
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            self._take_back(segment)
            raise
        with self._changing:
            segment.lines |= dict.fromkeys(map(key_of, captures), segment.size)
            segment.size += len(line)

    def _begin_segment(self) -> None:
        number = 1 + max((int(segment.path.stem) for segment in self._segments), default=0)
        path = self._folder / f"{number:08}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        with self._changing:
            self._segments.append(_Segment(path))
        sync_folder(self._folder)

    def _take_back(self, segment: _Segment) -> None:
        try:
            os.ftruncate(self._file, segment.size)
        except OSError:
            # What came of the line is not known, so nothing may be written behind it.
            os.close(self._file)
            self._file = -1

    def _next_line(self) -> tuple[_Segment, bytes] | None:
        """The line at which reading has arrived, and its segment; moves on behind it."""
        with self._changing:
            before = 0
            for segment in self._segments:
                if self._reached < before + segment.size:
                    line = _line_at(segment, self._reached - before)
                    self._reached += len(line)
                    return segment, line
                before += segment.size
        return None

    def _retire(self, segment: _Segment) -> None:
        if not segment.is_damaged:
            segment.path.unlink()
            return
        aside = self._folder.parent / DAMAGED_FOLDER / f"{self._folder.stem}-{segment.path.name}"
        aside.parent.mkdir(exist_ok=True)
        segment.path.rename(aside)
        log.error("a damaged part of the journal is kept aside", extra={"file": str(aside)})


def size_of_all(home: Path) -> int:
    """How many bytes all journals below `home` take."""
    return sum(_sizes(home))


def _sizes(home: Path) -> Iterator[int]:
    for path in home.glob("*.journal/*.jsonl"):
        # A segment may be retired at any time.
        with suppress(FileNotFoundError):
            yield path.stat().st_size


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _try_lock(folder: Path) -> int | None:
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def _line(captures: Sequence[Capture]) -> bytes:
    document = orjson.dumps(captures)
    return b"%08x %s\n" % (crc32(document), document)


def _line_at(segment: _Segment, offset: int) -> bytes:
    with segment.path.open("rb") as file:
        file.seek(offset)
        return file.readline(segment.size - offset)


def _captures_of(line: bytes) -> list[Capture] | None:
    """The captures in `line`, None if it is not whole."""
    checksum, _, document = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(document):
        return None
    return [_capture_of(fields) for fields in orjson.loads(document)]


def _capture_of(fields: dict[str, Any]) -> Capture:
    captured_at = datetime.fromisoformat(fields.pop("captured_at"))
    return Capture(captured_at=captured_at, role=Role(fields.pop("role")), **fields)
