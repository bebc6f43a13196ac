"""Write-ahead log of captures on the local disk, shared by all workers of an endpoint's home.

It is used for as long as the store is unavailable: segments of checksummed
lines, each one batch, on disk before `append` returns. One worker at a time writes, so that each
knows what the others have answered; whoever comes first replays it, so that nothing waits for a
worker that died.

`AnswerCache` remembers, without durability, what was answered lately: by it an id that comes
again is known while the store cannot be asked.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import orjson

from mlschool_dagster.atomic import sync_folder
from mlschool_dagster.capture.idempotency import (
    EventKey,
    affected_keys,
    key_of,
    next_row_id,
    requests_of,
    resolve_duplicates,
)
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import Appended

SEGMENT_BYTES = 4 * 1024**2
ANSWERS_BYTES = 32 * 1024**2
"""How much of what was answered lately is remembered: about 100,000 rows."""
DAMAGED_FOLDER = "damaged"
REFUSED_FOLDER = "refused"
PATIENCE_SECONDS = 1.0
"""How long a worker waits for its turn to write: another's takes as long as the disk does."""
_POLL_SECONDS = 0.001
WAITING_FILE = "waiting"
"""There while anything waits for the store, whoever wrote it."""
_SEGMENTS = "[0-9]*.jsonl"
_ATTEMPT = "attempt"
_RETRACTED = "retracted"

log = logging.getLogger(__name__)


class WriteAheadLogFullError(Exception):
    """The write-ahead log has reached its limit; nothing was kept."""


@dataclass(slots=True, eq=False)
class _Seen:
    """A file of lines, of which the first ``size`` bytes have been read."""

    path: Path
    size: int = 0


class _Index:
    """Position of each event in growing files of lines, for as far as they have been read.

    Of several lines about an event the newest counts. Of the attempts to answer a request the
    newest one counts, and only where no line says what was answered.
    """

    def __init__(self) -> None:
        self._files: dict[Path, _Seen] = {}
        self._places: dict[EventKey, tuple[_Seen, int]] = {}
        # By the first row of the request.
        self._attempts: dict[EventKey, list[tuple[_Seen, int]]] = {}

    def follow(self, paths: Iterable[Path]) -> None:
        """Read what has come into the files at `paths`; forget all others."""
        paths = list(paths)
        gone = self._files.keys() - set(paths)
        if gone:
            for path in gone:
                del self._files[path]
            alive = set(map(id, self._files.values()))
            self._places = {k: p for k, p in self._places.items() if id(p[0]) in alive}
            self._attempts = {
                key: [place for place in places if id(place[0]) in alive]
                for key, places in self._attempts.items()
            }
        for path in paths:
            with suppress(FileNotFoundError):
                self._read_on(self._files.setdefault(path, _Seen(path)))

    def find(
        self, keys: Iterable[EventKey], but: "Attempt | None" = None
    ) -> dict[EventKey, Capture]:
        """Captures kept under `keys`, as far as known, leaving out the attempt `but`."""
        captures: dict[EventKey, Capture] = {}
        for key in keys:
            if key in captures:
                continue
            with suppress(FileNotFoundError):
                if key in self._places:
                    captures |= {key_of(c): c for c in _captures_at(*self._places[key])}
                elif key in self._attempts:
                    captures |= self._attempted(key, but)
        return {key: capture for key, capture in captures.items() if key in keys}

    def _attempted(self, first: EventKey, but: "Attempt | None") -> dict[EventKey, Capture]:
        """The rows of the request whose first row has the key `first`, all of them or none."""
        for seen, offset in reversed(self._attempts[first]):
            if but is not None and (seen.path, offset) == (but.path, but.offset):
                continue
            for request in requests_of(_captures_at(seen, offset)):
                if key_of(request[0]) == first and affected_keys(request).isdisjoint(self._places):
                    return {key_of(capture): capture for capture in request}
        return {}

    def _read_on(self, seen: _Seen) -> None:
        if seen.path.stat().st_size <= seen.size:
            return
        with seen.path.open("rb") as file:
            file.seek(seen.size)
            for line in file:
                # What has no end is still being written, or never was.
                if not line.endswith(b"\n"):
                    break
                with suppress(ValueError, TypeError):
                    self._enter(seen, *orjson.loads(line.rpartition(b"\t")[2]))
                seen.size += len(line)

    def _enter(
        self, seen: _Seen, event_ids: Sequence[str], of_shadows: Sequence[str], *mark: Any
    ) -> None:
        """Take in a line about events; what it says of them, if not what was answered, is `mark`.

        It is ``_ATTEMPT``, the offset of an attempt that the line confirms, or that of one that it
        retracts, and ``_RETRACTED``.
        """
        if mark == (_ATTEMPT,):
            following = None
            for event_id in event_ids:
                if event_id != following and (event_id, False) not in self._places:
                    self._attempts.setdefault((event_id, False), []).append((seen, seen.size))
                following = next_row_id(event_id)
        elif _RETRACTED in mark:
            for event_id in event_ids:
                with suppress(ValueError):
                    self._attempts.get((event_id, False), []).remove((seen, mark[0]))
        else:
            place = seen, mark[0] if mark else seen.size
            for key in [*((e, False) for e in event_ids), *((e, True) for e in of_shadows)]:
                self._places[key] = place
                self._attempts.pop(key, None)


class WriteAheadLog:
    """The log in `folder`, which is made with it; at most `limit_bytes` on disk.

    Safe for threads and processes.

    Raises:
        OSError: the disk does not take it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._waiting = folder / WAITING_FILE
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._replay_lock = os.open(folder / "replay.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            os.close(self._lock)
            raise
        self._turn = threading.RLock()
        self._index = _Index()
        self._file = -1
        self._segment = folder
        self._position = (folder, 0)
        self._reached = self._position
        self._damaged: set[Path] = set()
        if self._paths():
            # Whatever was cut off in between: what is there waits.
            self._waiting.touch()

    @property
    def is_waiting(self) -> bool:
        """Whether anything waits for the store, whoever wrote it."""
        return self._waiting.exists()

    @property
    def size(self) -> int:
        """How many bytes wait for the store."""
        return size_of_all(self._folder)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else writes, in this process or another, until the block ends.

        Raises:
            TimeoutError: somebody else writes for too long.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        if not self._turn.acquire(timeout=PATIENCE_SECONDS):
            raise TimeoutError(errno.ETIMEDOUT, "the write-ahead log is busy")
        try:
            while not _locks(self._lock):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the write-ahead log is busy")
                time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            self._turn.release()

    @contextmanager
    def replaying(self) -> Iterator[bool]:
        """Whether it is this process that may take out, until the block ends."""
        if not _locks(self._replay_lock):
            yield False
            return
        try:
            yield True
        finally:
            self._position = (self._folder, 0)
            fcntl.flock(self._replay_lock, fcntl.LOCK_UN)

    def append(self, captures: Sequence[Capture], answers: "AnswerCache | None" = None) -> Appended:
        """Keep all of `captures` or none, by the rule of `CaptureStore.append`; durable on return.

        What the log holds counts as known, and what `answers` remember: their captures are
        made durable here too, because nobody can ask whether the store has them.

        Raises:
            WriteAheadLogFullError: the limit is reached.
            OSError: the disk failed.
        """
        keys = affected_keys(captures)
        with self.exclusive():
            self._index.follow(self._paths())
            here = self._index.find(keys)
            known = {**answers.find(keys), **here} if answers is not None else here
            appended, new = resolve_duplicates(captures, known)
            if not appended.conflicts:
                first = {key_of(c): known.get(key_of(c), c) for c in captures}
                fresh = {key_of(c) for c in new} | (known.keys() - here.keys())
                lines = [capture for key, capture in first.items() if key in fresh]
                if lines:
                    self._write(_line(lines))
        return appended

    def oldest(self, most: int) -> list[Capture]:
        """The captures appended first: whole batches, until there are `most` or more.

        Only who is `replaying` may ask.
        """
        self._reached = self._position
        captures: list[Capture] = []
        for path in self._paths():
            if len(captures) >= most:
                break
            offset = self._reached[1] if path == self._reached[0] else 0
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    batch = captures_of(line)
                    if batch is None and line.endswith(b"\n"):
                        self._damaged.add(path)
                    captures += batch or ()
                    # A line without its end was being written when its owner died, and nobody was
                    # answered that it is kept; or it still is being written.
                    offset += len(line) if line.endswith(b"\n") else 0
                    if len(captures) >= most:
                        break
            self._reached = (path, offset)
        return captures

    def checkpoint(self) -> None:
        """Let go of what `oldest` returned last: it is safe elsewhere."""
        self._position = self._reached
        for path in self._paths():
            if path == self._position[0]:
                break
            self._retire(path)

    def end(self) -> None:
        """Remove what is left, all of it safe elsewhere; the caller is `exclusive`."""
        for path in self._paths():
            self._retire(path)
        self._waiting.unlink(missing_ok=True)

    def set_aside(self, captures: Sequence[Capture], reason: str) -> None:
        """Keep what no store will ever take in a file of its own; durable on return."""
        aside = self._folder / REFUSED_FOLDER / f"{uuid4().hex}.jsonl"
        aside.parent.mkdir(exist_ok=True)
        with aside.open("xb") as file:
            file.write(_line(captures))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(aside.parent)
        log.error(
            "captures that the store will never take are kept aside",
            extra={"file": str(aside), "captures": len(captures), "reason": reason},
        )

    def close(self) -> None:
        """Let go of the write-ahead log and leave what it holds to others."""
        with self._turn:
            for descriptor in (self._file, self._lock, self._replay_lock):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._lock = self._replay_lock = -1

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(_SEGMENTS))

    def _write(self, line: bytes) -> None:
        if self.size + len(line) > self._limit:
            raise WriteAheadLogFullError(f"The write-ahead log holds its {self._limit} bytes.")
        size = self._begin_segment_if_needed(len(line))
        if not self.is_waiting:
            self._waiting.touch()
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            self._take_back(size)
            raise

    def _begin_segment_if_needed(self, more: int) -> int:
        """Make the newest segment the one that is written to; its size."""
        paths = self._paths()
        if self._file >= 0 and (not paths or paths[-1] != self._segment):
            os.close(self._file)
            self._file = -1
        if paths and (size := paths[-1].stat().st_size) + more <= SEGMENT_BYTES:
            if self._file < 0:
                self._file = os.open(paths[-1], os.O_RDWR | os.O_APPEND)
                self._segment = paths[-1]
            if not size:
                # Whoever began it may have died before its name was on disk.
                sync_folder(self._folder)
            # Behind what a dead owner has not finished nothing may be written.
            if not size or os.pread(self._file, 1, size - 1) == b"\n":
                return size
        number = 1 + max((int(path.stem.partition("-")[0]) for path in paths), default=0)
        # A name that was never used before: others may still hold one that is gone.
        path = self._folder / f"{number:08}-{uuid4().hex[:8]}.jsonl"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            sync_folder(self._folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._segment = file, path
        return 0

    def _take_back(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError:
            # What came of the line is not known. If all of it is there it is replayed, which
            # promises nobody anything.
            log.exception("the write-ahead log cannot take back what it could not keep")

    def _retire(self, path: Path) -> None:
        if path in self._damaged:
            self._damaged.discard(path)
            aside = self._folder / DAMAGED_FOLDER / f"{uuid4().hex[:8]}-{path.name}"
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            log.error(
                "a damaged part of the write-ahead log is kept aside",
                extra={"file": str(aside)},
            )
        else:
            path.unlink()


@dataclass(frozen=True, slots=True)
class Attempt:
    """A line of an `AnswerCache`: which file, where in it, and the event ids that it is about."""

    path: Path
    offset: int
    event_ids: Sequence[str]


class AnswerCache:
    """Recent answers of the workers that share `folder`: a file for each of them.

    An `attempt` is noted before the store keeps it and confirmed once it did. Whoever gets the
    request again after its worker was killed in between, and cannot ask the store, answers what
    the store may have kept.

    Nothing is synchronised with the disk: it outlives workers, not a power cut. What cannot be
    written is not remembered. Safe for threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()
        self._index: _Index | None = None
        self._attempt: Attempt | None = None
        self._path = folder
        self._file = -1
        self._size = 0

    def add(self, captures: Sequence[Capture]) -> None:
        """Remember `captures`, which are being answered."""
        if captures:
            with self._turn:
                self._write(_line(captures))

    def attempt(self, captures: Sequence[Capture]) -> Attempt | None:
        """Note `captures`, which will be answered unless their ids turn out to be known."""
        self._attempt = None
        if captures:
            line = _line(captures, _ATTEMPT)
            with self._turn:
                if self._write(line):
                    event_ids = [capture.event_id for capture in captures]
                    self._attempt = Attempt(self._path, self._size - len(line), event_ids)
        return self._attempt

    def confirm(self, attempt: Attempt | None) -> bool:
        """Note that `attempt` is being answered; whether there is a line that says what it is."""
        return attempt is not None and self._refer(attempt)

    def retract(self, attempt: Attempt | None) -> None:
        """Note that `attempt` was refused: its ids belong to other rows."""
        if attempt is not None:
            self._refer(attempt, _RETRACTED)

    def _refer(self, attempt: Attempt, *mark: str) -> bool:
        line = _checked([], [attempt.event_ids, [], attempt.offset, *mark])
        with self._turn:
            is_there = attempt.path == self._path and not self._is_full(len(line))
            return is_there and self._write(line)

    def ended(self, attempt: Attempt | None) -> None:
        """Note that `attempt` is not under way any more, whatever came of it."""
        if attempt is self._attempt:
            self._attempt = None

    def _write(self, line: bytes) -> bool:
        try:
            if self._is_full(len(line)):
                self._begin()
            written = os.write(self._file, line)
        except OSError:
            written = 0
        self._size += written
        if written < len(line):
            # Nothing could be read behind an unfinished line.
            self._let_go()
        return written == len(line)

    def find(self, keys: Iterable[EventKey]) -> dict[EventKey, Capture]:
        """Answers under `keys`, as far as they are remembered.

        An attempt counts as an answer, since the store may have kept it; but not the newest one
        made here, which is under way, until it has `ended`.
        """
        with self._turn, suppress(OSError):
            self._index = self._index or _Index()
            self._index.follow(self._paths())
            return self._index.find(keys, self._attempt)
        return {}

    def rest(self) -> None:
        """Nobody asks for the time being: give back what makes finding quick."""
        with self._turn:
            self._index = None

    def close(self) -> None:
        """Let go of the file."""
        with self._turn:
            self._let_go()

    def _is_full(self, more: int) -> bool:
        # Another worker may have removed it to make room.
        return (
            self._file < 0 or self._size + more > SEGMENT_BYTES or not os.fstat(self._file).st_nlink
        )

    def _let_go(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        self._let_go()
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = 0
        for path in reversed(self._paths()):
            with suppress(FileNotFoundError):
                kept += path.stat().st_size
                if kept > ANSWERS_BYTES - SEGMENT_BYTES:
                    path.unlink()
        self._path = self._folder / f"{uuid4().hex}.answers"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0

    def _paths(self) -> list[Path]:
        """The files, the last written to last."""
        return sorted(self._folder.glob("*.answers"), key=_changed)


def size_of_all(folder: Path) -> int:
    """How many bytes wait in `folder`."""
    size = 0
    for path in folder.glob(_SEGMENTS):
        # A segment may be retired at any time.
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _locks(descriptor: int) -> bool:
    """Whether the lock could be taken at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _line(captures: Sequence[Capture], *mark: str) -> bytes:
    """`captures` and the event ids that index them, those of shadows apart."""
    keys: tuple[list[str], list[str]] = ([], [])
    for capture in captures:
        keys[capture.role is Role.SHADOW].append(capture.event_id)
    return _checked(captures, [*keys, *mark])


def _checked(captures: Sequence[Capture], keys: Sequence[Any]) -> bytes:
    """A line with its checksum."""
    document = b"%s\t%s" % (orjson.dumps(captures), orjson.dumps(keys))
    return b"%08x %s\n" % (crc32(document), document)


def _captures_at(seen: _Seen, offset: int) -> list[Capture]:
    with seen.path.open("rb") as file:
        file.seek(offset)
        return captures_of(file.readline()) or []


def captures_of(line: bytes) -> list[Capture] | None:
    """The captures in `line`, None if it is not whole."""
    checksum, _, document = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(document):
        return None
    return [_capture_of(fields) for fields in orjson.loads(document.partition(b"\t")[0])]


def _capture_of(fields: dict[str, Any]) -> Capture:
    captured_at = datetime.fromisoformat(fields.pop("captured_at"))
    return Capture(captured_at=captured_at, role=Role(fields.pop("role")), **fields)
