"""Status files of workers: read while the worker lives, removed when it has ended."""

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from mlschool_dagster.capture.records import Role
from mlschool_dagster.serving.worker_status import (
    FRESH_SECONDS,
    WORKERS_FOLDER,
    LoadFailure,
    WorkerFile,
    WorkerStatus,
    delete_worker,
    read_workers,
)


def test_what_a_worker_reports_is_read(tmp_path: Path) -> None:
    assert read_workers(tmp_path) == []
    file = WorkerFile(tmp_path)
    for status in (
        WorkerStatus(pid=1),
        WorkerStatus(1, "id", LoadFailure(None, None, "it is damaged")),
        WorkerStatus(
            1, "id", LoadFailure(Role.SHADOW, "2", "no"), "1", datetime.now(UTC), "3", 0.1
        ),
    ):
        file.write(status)
        assert read_workers(tmp_path) == [status]
    file.remove()
    assert read_workers(tmp_path) == []
    file.write(WorkerStatus(pid=1))
    assert read_workers(tmp_path) == []


def test_a_worker_that_reports_nothing_any_more_is_dead(tmp_path: Path) -> None:
    silent, talking = WorkerFile(tmp_path), WorkerFile(tmp_path)
    silent.write(WorkerStatus(pid=1))
    talking.write(WorkerStatus(pid=2))
    past = time.time() - FRESH_SECONDS
    for path in (tmp_path / WORKERS_FOLDER).iterdir():
        os.utime(path, (past, past))
    assert read_workers(tmp_path) == []
    talking.write(WorkerStatus(pid=2))
    assert read_workers(tmp_path) == [WorkerStatus(pid=2)]


def test_the_dead_are_forgotten(tmp_path: Path) -> None:
    delete_worker(tmp_path, 1)
    for pid in (1, 2):
        WorkerFile(tmp_path).write(WorkerStatus(pid))
    delete_worker(tmp_path, 1)
    assert [worker.pid for worker in read_workers(tmp_path)] == [2]


def test_a_living_worker_that_was_cleared_away_comes_back(tmp_path: Path) -> None:
    file = WorkerFile(tmp_path)
    file.write(WorkerStatus(pid=1))
    shutil.rmtree(tmp_path / WORKERS_FOLDER)
    file.write(WorkerStatus(pid=1))
    assert read_workers(tmp_path) == [WorkerStatus(pid=1)]


def test_what_is_still_being_written_is_overlooked(tmp_path: Path) -> None:
    (tmp_path / WORKERS_FOLDER).mkdir()
    (tmp_path / WORKERS_FOLDER / ".half.json").write_text("{")
    delete_worker(tmp_path, 1)
    assert read_workers(tmp_path) == []
