"""Importer: move new objects of a capture source into the capture store, exactly once.

A scan lists the folders in which something is to be expected, those of the last hours and those
without a date, and a few of the older ones: each scan goes on where the one before it stopped, so
that an object is imported however late it comes, and no scan lists the whole history.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from mlschool_dagster.capture.import_log import (
    ImportBatch,
    ImportFault,
    PositionMovedError,
    Progress,
    Unread,
)
from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.capture.sources import (
    CaptureSource,
    Folder,
    ObjectChunk,
    Position,
    StoredObject,
)
from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window

RECENT = timedelta(hours=6)
"""For how long after its end a dated folder is listed in each scan."""
MOST_FOLDERS = 500
"""Folders that a scan lists at once; the sweep lists the rest."""
SWEPT_FOLDERS = 8
"""Older folders that a scan lists, and as many again as long as they hold unread objects."""
SWEPT_OBJECTS = 100_000
"""Objects after which a scan lists no further older folder."""
BATCH = 1000
"""Rows and objects per transaction: few enough that a server's captures wait for milliseconds."""
KEPT_OBJECTS = 1000
"""Objects and faults of one import that its report names; the store records all of them."""

_DATED = re.compile(r"(?:^|/)(\d{4})(?:/(\d\d)(?:/(\d\d)(?:/(\d\d))?)?)?$")


class Scan:
    """One scan for objects that are new or have changed; the next one continues after ``swept``."""

    def __init__(self, source: CaptureSource, store: CaptureStore, now: datetime) -> None:
        self._source = source
        self._store = store
        self._now = now
        self._subfolders: dict[str, list[str]] = {}
        self._objects = 0
        self.swept = store.swept(source.name)

    def unread(self) -> Iterator[list[Unread]]:
        """Some objects at a time; ``swept`` is moved on by what has been consumed."""
        folders = [""]
        while folders and len(self._subfolders) < MOST_FOLDERS:
            folder = folders.pop()
            yield from self._unread_in(folder)
            folders += [each for each in self._subfolders[folder] if self._is_expected(each)]
        any_unread = True
        while any_unread:
            any_unread = False
            for unread in self._sweep():
                any_unread = True
                yield unread
            any_unread = any_unread and bool(self.swept)

    def _sweep(self) -> Iterator[list[Unread]]:
        folders, most_objects = 0, self._objects + SWEPT_OBJECTS
        for folder in self._after("", self.swept.split("/") if self.swept else []):
            if folders == SWEPT_FOLDERS or self._objects >= most_objects:
                return
            if folder not in self._subfolders:
                folders += 1
                yield from self._unread_in(folder)
            self.swept = folder
        # From the beginning the next time.
        self.swept = ""

    def _after(self, folder: str, swept: list[str]) -> Iterator[str]:
        """The folders below `folder` in order, each before those in it, that come after `swept`."""
        for each in self._listed(folder):
            path = each.split("/")
            if path < swept[: len(path)]:
                continue
            if path != swept[: len(path)]:
                yield each
            yield from self._after(each, swept)

    def _listed(self, folder: str) -> list[str]:
        if folder not in self._subfolders:
            entries = self._source.entries(folder)
            self._subfolders[folder] = sorted(
                (entry.name for entry in entries if isinstance(entry, Folder)),
                key=lambda name: name.split("/"),
            )
        return self._subfolders[folder]

    def _unread_in(self, folder: str) -> Iterator[list[Unread]]:
        """The objects in `folder` itself that are unread, some at a time."""
        subfolders: list[str] = []
        # Hashes, as the names of a million objects would fill the memory; one that is mistaken for
        # another is read by the next process, whose hashes are others.
        read = set(map(hash, self._store.read_objects(self._source.name, folder)))

        def unread() -> Iterator[StoredObject]:
            for entry in self._source.entries(folder):
                if isinstance(entry, Folder):
                    subfolders.append(entry.name)
                    continue
                self._objects += 1
                if hash((entry.name, entry.version)) not in read:
                    yield entry

        listed = unread()
        while some := list(islice(listed, BATCH)):
            unread_items = self._store.unread(self._source.name, folder, some)
            if unread_items:
                yield sorted(unread_items, key=lambda each: each.item.name)
        self._subfolders[folder] = sorted(subfolders, key=lambda name: name.split("/"))

    def _is_expected(self, folder: str) -> bool:
        """Whether something may arrive in `folder` or below it now; so it is without a date."""
        dated = _DATED.search(folder)
        if dated is None:
            return True
        try:
            start, end = _time_of(*(int(part) for part in dated.groups() if part is not None))
        except ValueError:
            return True
        return end + RECENT > self._now and start - RECENT <= self._now


def _time_of(year: int, month: int = 0, day: int = 0, hour: int = -1) -> tuple[datetime, datetime]:
    """The time, [start, end), that a folder of a year, a month, a day or an hour is for."""
    start = datetime(year, month or 1, day or 1, max(hour, 0), tzinfo=UTC)
    if hour >= 0:
        return start, start + timedelta(hours=1)
    if day:
        return start, start + timedelta(days=1)
    if month:
        return start, (start + timedelta(days=31)).replace(day=1)
    return start, start + timedelta(days=366)


def has_unread(source: CaptureSource, store: CaptureStore, now: datetime) -> bool:
    """Whether a scan finds something to import; if not, the next one goes on after it."""
    scan = Scan(source, store, now)
    before = scan.swept
    for _ in scan.unread():
        return True
    if scan.swept != before:
        store.set_swept(source.name, scan.swept)
    return False


@dataclass(slots=True)
class ImportReport:
    """Result of importing one source."""

    source: str
    objects: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of each object that was read, of the first objects."""
    captures: int = 0
    duplicates: int = 0
    labels: int = 0
    refusals: int = 0
    faults: list[ImportFault] = field(default_factory=list)
    fault_count: int = 0
    skipped: int = 0
    """Objects that another import has read on meanwhile."""
    longest_lag: timedelta = timedelta()
    """Between the time of a capture and its import."""
    summed_lag: timedelta = timedelta()

    @property
    def mean_lag(self) -> timedelta | None:
        """Between the time of a capture and its import, None without captures."""
        rows = self.captures + self.duplicates
        return self.summed_lag / rows if rows else None


class Importer:
    """Imports what is unread at `source` into `store`, by the clock `now`.

    It may be killed at any point, and several may run at once: each row is kept once.
    """

    def __init__(
        self, source: CaptureSource, store: CaptureStore, now: Callable[[], datetime]
    ) -> None:
        self._source = source
        self._store = store
        self._now = now
        self._batch = ImportBatch()
        self.report = ImportReport(source.name)

    def run(self) -> ImportReport:
        """Import what one scan finds.

        Raises:
            UserError: the source cannot be read, or the store cannot be used.
        """
        scan = Scan(self._source, self._store, self._now())
        before = scan.swept
        for some in scan.unread():
            for unread in some:
                self._read(unread)
        self._commit()
        if scan.swept != before:
            self._store.set_swept(self._source.name, scan.swept)
        return self.report

    def _read(self, unread: Unread) -> None:
        item, before = unread.item, unread.before
        self.report.objects += 1
        if len(self.report.rows) < KEPT_OBJECTS:
            self.report.rows[item.name] = 0
        for chunk in self._source.read(item, before or Position()):
            self._add(item, before, chunk)
            before = chunk.end
            rows = len(self._batch.captures) + len(self._batch.labels)
            if rows >= BATCH and not self._commit():
                return
        if len(self._batch.progress) >= BATCH:
            self._commit()

    def _add(self, item: StoredObject, before: Position | None, chunk: ObjectChunk) -> None:
        batch = self._batch
        if batch.progress and batch.progress[-1].object_name == item.name:
            before = batch.progress.pop().before
        version = item.version if chunk.final and not chunk.again else ""
        batch.progress.append(Progress(item.name, before, chunk.end, version, chunk.waiting))
        batch.faults += [ImportFault(item.name, line, reason) for line, reason in chunk.faults]
        for line, record in chunk.records:
            if isinstance(record, Capture):
                batch.captures.append((item.name, line, record))
            elif isinstance(record, Label):
                batch.labels.append((item.name, line, record))
            else:
                batch.refusals[Window.of(record.refused_at), record.reason] += record.requests

    def _commit(self) -> bool:
        """Keep the batch and begin another; whether nobody else had read on."""
        batch, self._batch = self._batch, ImportBatch()
        if not batch.progress:
            return True
        now = self._now()
        try:
            imported = self._store.append_import(self._source.name, batch, now)
        except PositionMovedError:
            self.report.skipped += len(batch.progress)
            return False
        self._report(batch, now)
        self.report.captures += imported.captures
        self.report.duplicates += imported.duplicates
        self.report.labels += imported.labels
        self.report.fault_count += len(imported.faults)
        self.report.faults += imported.faults[: KEPT_OBJECTS - len(self.report.faults)]
        return True

    def _report(self, batch: ImportBatch, now: datetime) -> None:
        report = self.report
        report.refusals += batch.refusals.total()
        for name, _, _ in (*batch.captures, *batch.labels):
            if name in report.rows:
                report.rows[name] += 1
        for _, _, capture in batch.captures:
            lag = now - capture.captured_at
            report.summed_lag += lag
            report.longest_lag = max(report.longest_lag, lag)
