"""Import log: how far each object of each source was read, and its unreadable lines.

The log is kept in the capture store's own database, so that rows and positions are committed
together: whatever dies in between, each row is imported exactly once.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol, TypeVar

from mlschool_dagster.capture.idempotency import EventKey, key_of, resolve_rows
from mlschool_dagster.capture.records import (
    CAPTURE_FIELDS,
    Capture,
    Label,
    Role,
    capture_of,
    capture_row,
    label_row,
    microseconds,
    number_of,
)
from mlschool_dagster.capture.sources import Position, StoredObject
from mlschool_dagster.capture.store import InvalidCaptureError
from mlschool_dagster.capture.windows import Window

T = TypeVar("T")
Row = Sequence[Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_TAKEN = "the database of the capture store does not take it"
OBJECT_PAGE = 20_000
NAMES = 500
"""Names that a query asks for: fewer than any database's limit of parameters."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS import_sources (source TEXT PRIMARY KEY, swept TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS import_objects ("
    "source TEXT NOT NULL, folder TEXT NOT NULL, object TEXT NOT NULL, version TEXT NOT NULL, "
    "position BIGINT NOT NULL, line BIGINT NOT NULL, waiting INTEGER NOT NULL, "
    "PRIMARY KEY (source, folder, object))",
    "CREATE TABLE IF NOT EXISTS import_faults ("
    "source TEXT NOT NULL, object TEXT NOT NULL, line BIGINT NOT NULL, reason TEXT NOT NULL, "
    "recorded_at BIGINT NOT NULL, PRIMARY KEY (source, object, line, reason))",
)
_INSERT_OBJECT = (
    "INSERT INTO import_objects (source, folder, object, version, position, line, waiting) "
    "VALUES (:source, :folder, :object, :version, :position, :line, :waiting) "
    "ON CONFLICT DO NOTHING"
)
_UPDATE_OBJECT = (
    "UPDATE import_objects "
    "SET version = :version, position = :position, line = :line, waiting = :waiting "
    "WHERE source = :source AND folder = :folder AND object = :object AND position = :before"
)
_INSERT_FAULT = (
    "INSERT INTO import_faults (source, object, line, reason, recorded_at) "
    "VALUES (:source, :object, :line, :reason, :recorded_at) ON CONFLICT DO NOTHING"
)
_SET_SWEPT = (
    "INSERT INTO import_sources (source, swept) VALUES (:source, :swept) "
    "ON CONFLICT (source) DO UPDATE SET swept = excluded.swept"
)


@dataclass(frozen=True, slots=True)
class Unread:
    """An object that is new or has changed, and how far it was read (None: never)."""

    item: StoredObject
    before: Position | None


@dataclass(frozen=True, slots=True)
class ImportFault:
    """A line that was not imported."""

    object_name: str
    line: int
    """Counted from 1; 0 is the object itself."""
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """An object's position before and after what a batch has of it."""

    object_name: str
    before: Position | None
    after: Position
    version: str
    """That of the listing if all of it was read, else empty."""
    waiting: bool


@dataclass(slots=True)
class ImportBatch:
    """Rows that are imported in one transaction."""

    progress: list[Progress] = field(default_factory=list)
    captures: list[tuple[str, int, Capture]] = field(default_factory=list)
    """Each with the name of its object and its line."""
    labels: list[tuple[str, int, Label]] = field(default_factory=list)
    refusals: Counter[tuple[Window, str]] = field(default_factory=Counter)
    faults: list[ImportFault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of one batch. Faults include captures whose event id belongs to another row."""

    captures: int
    duplicates: int
    labels: int
    faults: tuple[ImportFault, ...]


class _TakenError(Exception):
    """Undoes a transaction that was only tried."""


class PositionMovedError(Exception):
    """Another import has read on in the meantime; nothing of the batch was kept."""


class Transaction(Protocol):
    """The statements of one transaction that writes; queries name parameters as ``:name``."""

    def fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of `query`; none of a statement that gives none."""

    def execute_many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many rows `statement` changed, executed once for each of `rows`."""

    def insert_captures(self, rows: Sequence[Row]) -> None:
        """Insert rows in the order of `CAPTURE_COLUMNS`."""

    def insert_labels(self, rows: Sequence[Row]) -> int:
        """Insert rows in the order of `LABEL_COLUMNS` unless they are known; how many were new."""

    def add_refusals(self, rows: Sequence[Row]) -> None:
        """Add rows of window number, reason and count to what is counted."""


class ImportLog(ABC):
    """The part of a capture store that importers use."""

    _has_tables = False

    @abstractmethod
    def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of `query`, whose snapshot is let go before they are returned."""

    @abstractmethod
    def _change(self, statements: Sequence[str], parameters: Mapping[str, Any]) -> int:
        """Execute `statements` in one transaction; how many rows the last one changed."""

    @abstractmethod
    def _transact(self, work: Callable[[Transaction], T]) -> T:
        """The outcome of `work`, all of which is durable on return, or nothing is kept.

        It may be done again, after nothing of it was kept.

        Raises:
            InvalidCaptureError: a row can never be kept.
        """

    def read_objects(self, source: str, folder: str) -> Iterator[tuple[str, str]]:
        """See `CaptureStore.read_objects`."""
        self._make_tables()
        last = ""
        while page := self._fetch(
            "SELECT object, version FROM import_objects "  # noqa: S608
            "WHERE source = :source AND folder = :folder AND object > :last "
            f"ORDER BY object LIMIT {OBJECT_PAGE}",
            {"source": source, "folder": folder, "last": last},
        ):
            yield from page  # type: ignore[misc]
            last = page[-1][0]

    def unread(self, source: str, folder: str, items: Sequence[StoredObject]) -> list[Unread]:
        """See `CaptureStore.unread`."""
        self._make_tables()
        unread = []
        for some in _slices(items):
            known = {
                name: (version, Position(position, line))
                for name, version, position, line in self._fetch(
                    "SELECT object, version, position, line FROM import_objects "  # noqa: S608
                    "WHERE source = :source AND folder = :folder "
                    f"AND object IN ({_names(some)})",
                    {
                        "source": source,
                        "folder": folder,
                        **_parameters(item.name for item in some),
                    },
                )
            }
            for item in some:
                version, before = known.get(item.name, (None, None))
                if version != item.version:
                    unread.append(Unread(item, before))
        return unread

    def append_import(self, source: str, batch: ImportBatch, now: datetime) -> Imported:
        """See `CaptureStore.append_import`."""
        self._make_tables()
        try:
            return self._transact(lambda transaction: _append(transaction, source, batch, now))
        except InvalidCaptureError:
            valid = self._valid(batch)
            return self._transact(lambda transaction: _append(transaction, source, valid, now))

    def swept(self, source: str) -> str:
        """See `CaptureStore.swept`."""
        self._make_tables()
        rows = self._fetch(
            "SELECT swept FROM import_sources WHERE source = :source", {"source": source}
        )
        return str(rows[0][0]) if rows else ""

    def set_swept(self, source: str, folder: str) -> None:
        """See `CaptureStore.set_swept`."""
        self._make_tables()
        self._change([_SET_SWEPT], {"source": source, "swept": folder})

    def import_faults(
        self, source: str, since: datetime, count: int
    ) -> tuple[int, list[ImportFault]]:
        """See `CaptureStore.import_faults`."""
        self._make_tables()
        parameters = {"source": source, "since": microseconds(since), "count": count}
        condition = "FROM import_faults WHERE source = :source AND recorded_at >= :since"
        ((total,),) = self._fetch(f"SELECT COUNT(*) {condition}", parameters)
        rows = self._fetch(
            f"SELECT object, line, reason {condition} "
            "ORDER BY recorded_at DESC, object, line LIMIT :count",
            parameters,
        )
        return int(total), [ImportFault(*row) for row in rows]

    def imported_objects(self, source: str) -> tuple[int, int]:
        """See `CaptureStore.imported_objects`."""
        self._make_tables()
        ((objects, waiting),) = self._fetch(
            "SELECT COUNT(*), COALESCE(SUM(waiting), 0) FROM import_objects WHERE source = :source",
            {"source": source},
        )
        return int(objects), int(waiting)

    def _valid(self, batch: ImportBatch) -> ImportBatch:
        """`batch` with faults in place of the rows that this database does not take."""
        valid = ImportBatch(batch.progress, refusals=batch.refusals, faults=list(batch.faults))
        for capture in batch.captures:
            if self._takes(ImportBatch(captures=[capture])):
                valid.captures.append(capture)
            else:
                valid.faults.append(ImportFault(*capture[:2], _NOT_TAKEN))
        for label in batch.labels:
            if self._takes(ImportBatch(labels=[label])):
                valid.labels.append(label)
            else:
                valid.faults.append(ImportFault(*label[:2], _NOT_TAKEN))
        return valid

    def _takes(self, batch: ImportBatch) -> bool:
        def attempt(transaction: Transaction) -> None:
            _append(transaction, "", batch, _EPOCH)
            raise _TakenError

        try:
            self._transact(attempt)
        except InvalidCaptureError:
            return False
        except _TakenError:
            return True
        return True

    def _make_tables(self) -> None:
        if not self._has_tables:
            self._transact(lambda making: [making.fetch(table, {}) for table in _TABLES])
            self._has_tables = True


def known_captures(
    transaction: Transaction, captures: Iterable[Capture]
) -> dict[EventKey, Capture]:
    """Those that are kept already under the keys of `captures`."""
    known: dict[EventKey, Capture] = {}
    keys = sorted({key_of(capture) for capture in captures})
    for of_shadow, comparison in ((False, "<>"), (True, "=")):
        event_ids = [event_id for event_id, shadow in keys if shadow is of_shadow]
        for some in _slices(event_ids):
            rows = transaction.fetch(
                f"SELECT {CAPTURE_FIELDS} FROM captures "  # noqa: S608
                f"WHERE role {comparison} '{Role.SHADOW}' AND event_id IN ({_names(some)})",
                _parameters(some),
            )
            known |= {key_of(capture): capture for capture in map(capture_of, rows)}
    return known


def _append(transaction: Transaction, source: str, batch: ImportBatch, now: datetime) -> Imported:
    _move(transaction, source, batch.progress)
    captures = [capture for _, _, capture in batch.captures]
    new, duplicates, conflicts = resolve_rows(captures, known_captures(transaction, captures))
    transaction.insert_captures(list(map(capture_row, new)))
    labels = transaction.insert_labels([label_row(label) for _, _, label in batch.labels])
    transaction.add_refusals(
        sorted(
            (number_of(window), reason, requests)
            for (window, reason), requests in batch.refusals.items()
        )
    )
    faults = [
        *batch.faults,
        *(
            ImportFault(
                name, line, f"its event id {capture.event_id[:100]!a} belongs to another row"
            )
            for position, (name, line, capture) in enumerate(batch.captures)
            if position in conflicts
        ),
    ]
    transaction.execute_many(
        _INSERT_FAULT,
        [
            {
                "source": source,
                "object": fault.object_name,
                "line": fault.line,
                "reason": fault.reason,
                "recorded_at": microseconds(now),
            }
            for fault in faults
        ],
    )
    return Imported(len(new), duplicates, labels, tuple(faults))


def _move(transaction: Transaction, source: str, progress: Sequence[Progress]) -> None:
    rows = [
        {
            "source": source,
            "folder": each.object_name.rpartition("/")[0],
            "object": each.object_name,
            "version": each.version,
            "position": each.after.offset,
            "line": each.after.line,
            "waiting": int(each.waiting),
            "before": each.before.offset if each.before else None,
        }
        for each in progress
    ]
    for statement, some in (
        (_INSERT_OBJECT, [row for row in rows if row["before"] is None]),
        (_UPDATE_OBJECT, [row for row in rows if row["before"] is not None]),
    ):
        if transaction.execute_many(statement, some) != len(some):
            raise PositionMovedError


def _slices(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, NAMES)):
        yield some


def _names(values: Sequence[object]) -> str:
    return ", ".join(f":n{position}" for position in range(len(values)))


def _parameters(values: Iterable[str]) -> dict[str, str]:
    return {f"n{position}": value for position, value in enumerate(values)}
