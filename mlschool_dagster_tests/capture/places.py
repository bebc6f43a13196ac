"""Places where capture sources find objects: each writes what others would have left there."""

import gzip
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import fsspec
import orjson

from mlschool_dagster.capture.json_lines import JsonLines
from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.sources import (
    CaptureSource,
    FsspecFiles,
    JsonLinesSource,
    Record,
)
from mlschool_dagster_tests.capture.samples import capture

BAD = b"{not JSON"
"""What is written for a row that nobody can read."""

Written = Record | None
"""None stands for a bad line."""


class Place(Protocol):
    """Where a source under test finds its objects."""

    @property
    def source(self) -> CaptureSource:
        """The source under test."""

    @property
    def grows(self) -> bool:
        """Whether objects are appended to, else they are written once."""

    @property
    def has_labels(self) -> bool:
        """Whether labels arrive here."""

    def folder(self, hour: datetime) -> str:
        """The folder of what was captured in `hour`."""

    def write(self, name: str, rows: Sequence[Written]) -> None:
        """A new object with `rows`, one a line."""

    def extend(self, name: str, rows: Sequence[Written]) -> None:
        """More lines at the end of an object."""

    def remove(self, name: str) -> None:
        """No object any more."""


class JsonLinesPlace:
    """A folder, or a place that fsspec knows, with objects in the platform's own format."""

    grows = True
    has_labels = True

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._files, self._root = fsspec.core.url_to_fs(uri)
        self.source = JsonLinesSource(
            FsspecFiles(uri, "MLSCHOOL_CAPTURE_SOURCE"), JsonLines("penguins", lambda *_: None)
        )

    def folder(self, hour: datetime) -> str:
        return f"penguins/{hour:%Y/%m/%d/%H}"

    def write(self, name: str, rows: Sequence[Written]) -> None:
        self.put(name, b"".join(line(row) + b"\n" for row in rows))

    def extend(self, name: str, rows: Sequence[Written]) -> None:
        self.put(name, b"".join(line(row) + b"\n" for row in rows), "ab")

    def remove(self, name: str) -> None:
        self._files.rm(f"{self._root}/{name}")

    def put(self, name: str, content: bytes, mode: str = "wb") -> None:
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self._files.open(path, mode) as file:
            file.write(content)


class PackedPlace(JsonLinesPlace):
    """Objects that are packed, to which others are appended as further members."""

    def put(self, name: str, content: bytes, mode: str = "wb") -> None:
        super().put(name, gzip.compress(content), mode)


def folder_place(folder: Path) -> Place:
    return JsonLinesPlace(str(folder / "objects"))


def packed_place(folder: Path) -> Place:
    return PackedPlace(str(folder / "objects"))


def memory_place(folder: Path) -> Place:
    return JsonLinesPlace(f"memory://captures-{uuid4().hex}")


PLACES = {"folder": folder_place, "packed": packed_place, "fsspec": memory_place}
"""Every kind of place whose source passes the contract suite."""


def line(row: Written) -> bytes:
    """A row in the platform's own format."""
    if row is None:
        return BAD
    if isinstance(row, Capture):
        document: dict[str, Any] = {
            name: getattr(row, name)
            for name in (
                *("event_id", "captured_at", "endpoint", "model_version", "inputs", "prediction"),
                *("confidence", "probabilities", "role", "sampling_share"),
            )
        }
        return orjson.dumps(document)
    return orjson.dumps(row)


def rows(name: str, count: int, after: timedelta = timedelta()) -> list[Written]:
    """Captures whose event ids begin with `name`."""
    return [capture(f"{name}-{number}", after) for number in range(count)]
