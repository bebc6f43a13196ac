"""The status of each worker: a small file that the worker keeps fresh while it lives."""

import asyncio
import errno
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.records import Role

WORKERS_FOLDER = "workers"
METRICS_FOLDER = "metrics"
_OURS = "[0-9a-f]" * 32
"""The names of files of workers, and of no others."""
LIVING, DEAD = ".worker.json", ".dead.json"
METRICS_FILES = f"{_OURS}.*.json"
HEARTBEAT_SECONDS = 0.5
FRESH_SECONDS = 3.0
"""A worker whose file is older is dead, or unable to serve."""

SHORTAGE = 75
"""The exit code of a worker that had too little memory, or too few files or threads, to begin."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A version that should serve in ``role`` but cannot, and why.

    Version and role are None if what should serve could not even be read.
    """

    role: Role | None
    version: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Status of a worker: the version of each role, and since when the primary does (UTC).

    ``deployment_id`` names the desired state that it last acted on, ``failure`` says if that went
    wrong; then it serves what it served before.
    """

    pid: int
    deployment_id: str | None = None
    failure: LoadFailure | None = None
    version: str | None = None
    since: datetime | None = None
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    sampling_share: float = 1.0


class WorkerFile:
    """The status file of this worker in `home`; thread-safe."""

    def __init__(self, home: Path) -> None:
        self._path = home / WORKERS_FOLDER / f"{uuid4().hex}.json"
        self._content = ""
        self._lock = threading.Lock()
        self._is_removed = False

    def write(self, status: WorkerStatus) -> None:
        """Write `status`, or mark it as still true."""
        content = json.dumps(asdict(status), default=datetime.isoformat)
        with self._lock:
            if self._is_removed:
                return
            # A server that starts deletes what it takes for leftovers.
            if content == self._content and self._path.exists():
                os.utime(self._path)
                return
            with replacing(self._path) as temporary:
                temporary.write_text(content, encoding="utf-8")
            self._content = content

    def remove(self) -> None:
        """Delete the file for good: this worker serves no more."""
        with self._lock:
            self._is_removed = True
            self._path.unlink(missing_ok=True)


def read_workers(home: Path) -> list[WorkerStatus]:
    """The workers of the server in `home` that live."""
    now = time.time()
    statuses = []
    for path in _files(home):
        try:
            if now - path.stat().st_mtime < FRESH_SECONDS:
                statuses.append(_status(json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            # The worker has just ended.
            continue
        except (ValueError, TypeError, KeyError):
            log.error("the status of a worker cannot be read", extra={"file": str(path)})
    return statuses


def delete_worker(home: Path, pid: int) -> None:
    """Remove what the worker `pid` left behind when it was killed, but for what it has counted."""
    for path in _files(home):
        if _pid_in(path) == pid:
            path.unlink(missing_ok=True)
    retire_counts(home / METRICS_FOLDER, pid)


def retire_counts(folder: Path, pid: int) -> None:
    """Leave the dead worker `pid` out of the metrics of those alive; what it counted remains."""
    for path in folder.glob(METRICS_FILES):
        if path.name.endswith(LIVING) and _pid_in(path) == pid:
            with suppress(OSError):
                path.rename(path.with_name(path.name.removesuffix(LIVING) + DEAD))


def delete_all_workers(home: Path) -> None:
    """Remove what the workers of an earlier server left behind, and nothing else."""
    for path in (*_files(home), *(home / METRICS_FOLDER).glob(METRICS_FILES)):
        path.unlink(missing_ok=True)


def is_shortage(error: BaseException) -> bool:
    """Whether `error` means that the system gives no more memory, files or threads just now."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "new thread" in str(error)
    )


def end_worker_if_failed(task: "asyncio.Task[None]") -> None:
    """End this worker, whose successor begins anew, if `task` has failed.

    A worker that answers but follows no desired state any more, or that keeps no captures, would
    go unnoticed for long.
    """
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("worker ends, it cannot go on", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


def _files(home: Path) -> Iterator[Path]:
    return (home / WORKERS_FOLDER).glob(f"{_OURS}.json")


def _pid_in(path: Path) -> int | None:
    """Which worker wrote the file; None if it is gone, or says nothing."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _status(document: dict[str, Any]) -> WorkerStatus:
    failure, since = document["failure"], document["since"]
    if failure is not None:
        role = failure["role"]
        failure = LoadFailure(**{**failure, "role": None if role is None else Role(role)})
    since = None if since is None else datetime.fromisoformat(since)
    return WorkerStatus(**{**document, "failure": failure, "since": since})
