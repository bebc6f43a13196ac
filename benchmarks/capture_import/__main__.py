"""What importing captures costs: ``python -m benchmarks.capture_import [--store URI]``.

Two measures, in CPU seconds of the importing process: 10^6 captures in 1,000 files; and one tick,
that is one scan with the import of what it finds, over 10^6 files of which one is new. The files
are in one folder, which is the worst case: folders by hour are not listed once they are past.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import orjson

from mlschool_dagster.capture.import_log import ImportBatch, Progress
from mlschool_dagster.capture.importer import Importer
from mlschool_dagster.capture.json_lines import JsonLines
from mlschool_dagster.capture.sources import (
    FsspecFiles,
    JsonLinesSource,
    Position,
    StoredObject,
)
from mlschool_dagster.capture.store import open_store

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MEASURES = ("captures", "tick")


def line(number: int) -> bytes:
    """A capture of seven inputs and three classes; its id is as random as a client's."""
    document = {
        "event_id": str(UUID(int=(number * 0x9E3779B97F4A7C15F39CC0605CEDC834) % 2**128)),
        "captured_at": (NOON + timedelta(seconds=number % 36_000)).isoformat(),
        "model_version": "3",
        "inputs": {
            "island": "Biscoe",
            "culmen_length_mm": 48.6 + number % 7,
            "culmen_depth_mm": 16.0,
            "flipper_length_mm": 230.0,
            "body_mass_g": 5800 + number % 1000,
            "sex": "MALE",
            "note": None,
        },
        "prediction": "Gentoo",
        "confidence": 0.98,
        "probabilities": {"Adelie": 0.01, "Chinstrap": 0.01, "Gentoo": 0.98},
    }
    return orjson.dumps(document) + b"\n"


def measured(what: str, folder: Path, store_uri: str) -> None:
    """Print the cost of one import, in a process of its own."""
    before = time.process_time(), time.monotonic()
    source = JsonLinesSource(
        FsspecFiles(str(folder), "folder"), JsonLines("penguins", lambda *_: None)
    )
    store = open_store(store_uri)
    report = Importer(source, store, lambda: datetime.now(UTC)).run()
    store.close()
    cpu, wall = time.process_time() - before[0], time.monotonic() - before[1]
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{what}: {report.captures} captures of {report.objects} objects, {cpu:.1f} CPU s, "
        f"{wall:.1f} s, {megabytes:.0f} MB, {report.fault_count} faults",
        flush=True,
    )


def write_captures(folder: Path, files: int, rows: int) -> None:
    """Write so many files with so many captures each."""
    for number in range(files):
        content = b"".join(map(line, range(number * rows, (number + 1) * rows)))
        (folder / f"{number:07}.jsonl").write_bytes(content)


def write_history(folder: Path, store_uri: str, files: int) -> None:
    """Empty files that count as imported, and one that does not."""
    store = open_store(store_uri)
    name = FsspecFiles(str(folder), "folder").name
    for start in range(0, files, 1000):
        batch = ImportBatch()
        for number in range(start, start + 1000):
            path = folder / f"{number:07}.jsonl"
            path.touch()
            status = path.stat()
            item = StoredObject(path.name, 0, f"{status.st_mtime_ns}-{status.st_size}")
            batch.progress.append(Progress(item.name, None, Position(), item.version, False))
        store.append_import(name, batch, NOON)
    (folder / "new.jsonl").write_bytes(line(0))
    store.close()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="URI of an empty capture store; default: a SQLite file")
    parser.add_argument("--measure", choices=MEASURES, action="append")
    parser.add_argument("--files", type=int, help="of each measure")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measured(options.inside[0], Path(options.inside[1]), options.store)
        return
    for measure in options.measure or MEASURES:
        with tempfile.TemporaryDirectory(prefix="capture-import-") as temporary:
            folder = Path(temporary) / "objects"
            folder.mkdir()
            store = options.store or f"sqlite:///{temporary}/captures.db"
            if measure == "captures":
                write_captures(folder, options.files or 1000, 1000)
            else:
                write_history(folder, store, options.files or 10**6)
            command = [sys.executable, "-m", "benchmarks.capture_import", "--store", store]
            subprocess.run([*command, "--inside", measure, str(folder)], check=True)


if __name__ == "__main__":
    main()
