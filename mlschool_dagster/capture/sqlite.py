"""Captures and labels in one SQLite file: the embedded default.

The file is in WAL mode with full synchronisation, so that readers never block the writer, and a
commit that returned survives a crash of the machine. SQLite lets one writer in at a time and
numbers rows inside its transaction; hence sequence numbers become visible in order, and a cursor
over them never skips a row.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from mlschool_dagster.capture.idempotency import (
    NO_DUPLICATES,
    EventKey,
    affected_keys,
    resolve_duplicates,
)
from mlschool_dagster.capture.import_log import Row, Transaction
from mlschool_dagster.capture.records import (
    CAPTURE_COLUMNS,
    CAPTURE_FIELDS,
    LABEL_COLUMNS,
    Capture,
    Role,
    capture_of,
    capture_row,
)
from mlschool_dagster.capture.sql import SHADOWS, TRAFFIC, WINDOW_NUMBER, Fetch, SqlStore
from mlschool_dagster.capture.store import Appended, InvalidCaptureError, StoreUnavailableError
from mlschool_dagster.errors import UserError

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long a write waits for its turn before the store counts as unavailable."""
POLL_SECONDS = 0.001
"""SQLite's own waiting sleeps up to 100 ms, which a busy neighbour's short commits never meet."""
STATEMENT_ROWS = 120
"""Captures per statement. Each statement costs one hand-over of the interpreter's lock, which
under load takes longer than the statement; but SQLite compiles one for every number of rows, and
Python keeps 128 of them."""
LONG_LOG = 8 * 1024**2
"""Bytes of log beyond which it is begun anew. It grows while one reader is always there before the
last one has left, because SQLite itself begins it anew only when nobody reads."""
LOG_ENDING = "-wal"
LOG_PATIENCE_MILLISECONDS = 20
"""How long beginning anew waits for readers, and is waited for by who writes meanwhile."""
_INVALID_VALUES = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeError,
)
"""Errors caused by the values themselves: a retry raises them again."""

log = logging.getLogger(__name__)

_SCHEMA_VERSION = 3
_CAPTURE_VALUES = len(CAPTURE_COLUMNS.split(","))
"""How many variables a capture takes in a statement."""

_CAPTURES = """CREATE TABLE captures (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    captured_at INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    model_version TEXT NOT NULL,
    inputs TEXT NOT NULL,
    prediction TEXT NOT NULL,
    confidence REAL NOT NULL,
    probabilities TEXT NOT NULL,
    role TEXT NOT NULL,
    sampling_share REAL NOT NULL,
    probe INTEGER NOT NULL
)"""
_UNIQUE = (
    "CREATE UNIQUE INDEX answers ON captures (event_id) WHERE role <> 'shadow'",
    "CREATE UNIQUE INDEX shadows ON captures (event_id) WHERE role = 'shadow'",
)
# Every index of SQLite ends with the sequence, by which the captures of a window are in order.
_BY_WINDOW = (
    f"CREATE INDEX traffic_by_window ON captures ({WINDOW_NUMBER}) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_window ON captures ({WINDOW_NUMBER}) WHERE {SHADOWS}",
)
_REFUSALS = """CREATE TABLE refusals (
    window_number INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (window_number, reason)
) WITHOUT ROWID"""
# The unique constraint makes writing the same label again harmless, and finds an event's labels.
_LABELS = """CREATE TABLE labels (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    label TEXT NOT NULL,
    labelled_at INTEGER NOT NULL,
    source TEXT NOT NULL,
    UNIQUE (event_id, labelled_at, label, source)
)"""

_INSERT_LABEL = f"INSERT INTO labels ({LABEL_COLUMNS}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
_ADD_REFUSALS = (
    "INSERT INTO refusals (window_number, reason, requests) VALUES (?, ?, ?) "
    "ON CONFLICT (window_number, reason) DO UPDATE SET requests = requests + excluded.requests"
)


class SqliteStore(SqlStore):
    """A capture store in the SQLite file at `path`, created with its folder if it does not exist.

    Usable from several threads and processes at once. Writing goes through one connection; each
    read opens its own, so that none waits for another. If the file is moved or replaced, all that
    was kept is written into it first, and writing goes on in the file that is at its place then. If
    it is deleted (or moved to another disk, which deletes it), its log is set aside.

    Raises:
        StoreUnavailableError: the file cannot be reached, written, or is locked for too long.
        UserError: it is no capture store, or a newer release wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._file: os.stat_result | None = None
        self._log_bound = LONG_LOG
        self._writing = threading.Lock()
        with self._errors():
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                    raise UserError(
                        f"The capture store {path} cannot be opened: it is another kind of file; "
                        "choose another place."
                    ) from error
                raise

    def append(self, captures: Sequence[Capture]) -> Appended:
        """See `CaptureStore.append`."""
        if not captures:
            self._check_writable()
            return NO_DUPLICATES
        rows = list(map(capture_row, captures))

        def insert(connection: sqlite3.Connection) -> Appended:
            try:
                _insert(connection, rows)
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                    raise
                return _insert_unknown(connection, captures)
            return NO_DUPLICATES

        try:
            return self._write(insert)
        except _INVALID_VALUES as error:
            raise InvalidCaptureError(
                f"The capture store {self._path} does not take {len(rows)} captures ({error})."
            ) from error

    def close(self) -> None:
        """See `CaptureStore.close`."""
        with self._writing:
            with suppress(sqlite3.Error):
                # Nobody who moves the file afterwards needs to know of its log.
                self._write_log_into_file()
            self._connection.close()

    def _insert_labels(self, rows: Sequence[Row]) -> int:
        return self._write_one_of_many(
            lambda connection: _insert_many(connection, _INSERT_LABEL, rows)
        )

    def _change(self, statements: Sequence[str], parameters: Mapping[str, Any]) -> int:
        return self._write_one_of_many(
            lambda connection: _execute_all(connection, statements, parameters)
        )

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        def transact(connection: sqlite3.Connection) -> T:
            with _transaction(connection):
                return work(_SqliteTransaction(connection))

        try:
            return self._write_one_of_many(transact)
        except _INVALID_VALUES as error:
            raise InvalidCaptureError(
                f"The capture store {self._path} does not take what is imported ({error})."
            ) from error

    def _add_refusals(self, rows: Sequence[Row]) -> None:
        self._write(lambda connection: _insert_many(connection, _ADD_REFUSALS, rows))

    def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        with self._reading() as fetch:
            return fetch(query, parameters)

    @contextmanager
    def _reading(self) -> Iterator[Fetch]:
        """One connection for all queries of a stream, whose pages it then has in its cache."""
        if not self._path.exists():
            raise UserError(
                f"The capture store {self._path} is gone; stop what uses it, or put it back."
            )
        with self._errors():
            connection = self._connect("ro", BUSY_SECONDS)

        def fetch(query: str, parameters: Mapping[str, Any]) -> list[Row]:
            with self._errors():
                return connection.execute(query, parameters).fetchall()

        with closing(connection):
            yield fetch

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._writing, self._errors():
            while True:
                self._follow_file()
                self._bound_log()
                outcome = _retry_while_busy(lambda: work(self._connection))
                if _is_at_its_place(self._path, self._file):
                    return outcome
                # Removed meanwhile, and nothing may ever read its log again.
                if self._release_file():
                    return outcome

    def _check_writable(self) -> None:
        """Check that the file can be written, and release one that was removed or moved."""
        with self._writing, self._errors():
            if _is_at_its_place(self._path, self._file):
                _retry_while_busy(lambda: _nothing(self._connection))
            else:
                self._release_file()

    def _follow_file(self) -> None:
        """Make sure that writing goes to the file that is at the store's place now."""
        if not _is_at_its_place(self._path, self._file):
            self._release_file()
            self._open()

    def _write_one_of_many(self, work: Callable[[sqlite3.Connection], T]) -> T:
        outcome = self._write(work)
        # Whoever waits for the file retries within this time and finds it free; batch upon
        # batch would leave it no gap.
        time.sleep(2 * POLL_SECONDS)
        return outcome

    def _bound_log(self) -> None:
        try:
            size = self._log_path.stat().st_size
        except FileNotFoundError:
            # Whoever closes the file last removes its log.
            return
        if size < self._log_bound:
            return
        self._connection.execute(f"PRAGMA busy_timeout = {LOG_PATIENCE_MILLISECONDS}")
        (blocked, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._connection.execute("PRAGMA busy_timeout = 0")
        # Readers that are too slow for it now are not waited for by each of the next writes.
        self._log_bound = size + LONG_LOG // 8 if blocked else LONG_LOG

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file itself, wherever a link to it is.
        self._real_path = self._path.resolve()
        self._log_path, self._index_path = (
            self._real_path.with_name(f"{self._real_path.name}{ending}")
            for ending in (LOG_ENDING, "-shm")
        )
        if not self._real_path.exists():
            # SQLite would delete it. It may hold the last captures of a file that was moved away,
            # and whose server was killed.
            _set_aside(self._log_path)
        self._connection = self._connect("rwc", timeout=0.0)
        try:
            # Entering WAL needs the file alone.
            _retry_while_busy(lambda: self._connection.execute("PRAGMA journal_mode = WAL"))
            _retry_while_busy(self._prepare)
            self._file, *self._beside = map(
                Path.stat, (self._path, self._log_path, self._index_path)
            )
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with _transaction(self._connection) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                _create_tables(connection)
            elif version != _SCHEMA_VERSION:
                raise UserError(
                    f"The capture store {self._path} has the format {version}, this release writes "
                    f"{_SCHEMA_VERSION}; use the release that wrote it or another file."
                )

    def _release_file(self) -> bool:
        """Release a file that was removed or moved; return whether it keeps all that it was given.

        It does unless it was deleted: it is not left before its log is written into it. Nor does
        its log stay where SQLite would take it for that of the file which is there now.
        """
        if self._file is None:
            return True
        is_kept = _has_name(self._file)
        if is_kept:
            _retry_while_busy(self._write_log_into_file)
        if not _is_at_its_place(self._real_path, self._file):
            if not is_kept and _is_at_its_place(self._log_path, self._beside[0]):
                _set_aside(self._log_path)
            for path, file in zip((self._log_path, self._index_path), self._beside, strict=True):
                if _is_at_its_place(path, file):
                    path.unlink()
        self._connection.close()
        self._file = None
        return is_kept

    def _write_log_into_file(self) -> None:
        blocked, pages, written = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if blocked or written < pages:
            error = sqlite3.OperationalError("somebody still reads what it was before")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    def _connect(self, mode: str, timeout: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        _retry_while_busy(lambda: connection.execute("PRAGMA synchronous = FULL"))
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(
                f"The folder of the capture store {self._path} cannot be used ({error.strerror}); "
                "choose another place or mend its permissions."
            ) from error
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(
                f"The capture store {self._path} cannot be used ({error}); check that you may "
                "write to it, that its disk has room, and that nothing holds it locked."
            ) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, (sqlite3.ProgrammingError, *_INVALID_VALUES)):
                raise
            raise StoreUnavailableError(
                f"The capture store {self._path} cannot be used ({error}); stop the endpoint, move "
                f"the file away together with the one called {self._path.name}{LOG_ENDING} beside "
                "it, and put a copy in its place or let a new one begin."
            ) from error


@dataclass(frozen=True, slots=True)
class _SqliteTransaction:
    """See `Transaction`."""

    connection: sqlite3.Connection

    def fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        return self.connection.execute(query, parameters).fetchall()

    def execute_many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> int:
        return self.connection.executemany(statement, rows).rowcount if rows else 0

    def insert_captures(self, rows: Sequence[Row]) -> None:
        _insert_within(self.connection, rows)

    def insert_labels(self, rows: Sequence[Row]) -> int:
        return self.connection.executemany(_INSERT_LABEL, rows).rowcount if rows else 0

    def add_refusals(self, rows: Sequence[Row]) -> None:
        self.connection.executemany(_ADD_REFUSALS, rows)


def _is_at_its_place(path: Path, file: os.stat_result | None) -> bool:
    try:
        return file is not None and os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False


def _has_name(file: os.stat_result) -> bool:
    """Whether an open `file` still has a name somewhere.

    SQLite's own descriptor is asked: closing one more would end the locks of all.
    """
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(OSError):
            status = os.fstat(int(descriptor.name))
            if os.path.samestat(status, file):
                return status.st_nlink > 0
    return False


def _set_aside(path: Path) -> None:
    """Give the log at `path`, if there is one, a name that SQLite does not use."""
    try:
        if not path.stat().st_size:
            return
    except FileNotFoundError:
        return
    aside = path.with_name(f"{path.name}.{uuid4().hex[:8]}")
    path.rename(aside)
    log.error(
        "the capture store was taken away without its log, which is kept aside; before the store "
        "is opened where it is now, put the log beside it under the store's name with -wal",
        extra={"store": str(path).removesuffix(LOG_ENDING), "log": str(aside)},
    )


def _retry_while_busy(work: Callable[[], T]) -> T:
    """The outcome of `work`, tried again while another writer has the file."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            # The low byte is the kind of error, the rest its details.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _nothing(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        pass


def _insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    if not rows:
        return
    if len(rows) <= _statement_rows(connection):
        # A transaction of its own, in one step.
        _insert_once(connection, rows)
        return
    with _transaction(connection):
        _insert_within(connection, rows)


def _insert_within(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    size = _statement_rows(connection)
    for start in range(0, len(rows), size):
        _insert_once(connection, rows[start : start + size])


def _statement_rows(connection: sqlite3.Connection) -> int:
    """How many captures fit into a statement: a library may be built to take few variables."""
    variables = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    return min(STATEMENT_ROWS, max(1, variables // _CAPTURE_VALUES))


def _insert_once(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.execute(_insert_statement(len(rows)), tuple(chain.from_iterable(rows)))


def _insert_unknown(connection: sqlite3.Connection, captures: Sequence[Capture]) -> Appended:
    with _transaction(connection):
        appended, new = resolve_duplicates(captures, _known(connection, captures))
        _insert_within(connection, list(map(capture_row, new)))
    return appended


def _known(connection: sqlite3.Connection, captures: Sequence[Capture]) -> dict[EventKey, Capture]:
    known = {}
    for key in affected_keys(captures):
        event_id, of_shadow = key
        row = connection.execute(
            f"SELECT {CAPTURE_FIELDS} FROM captures "  # noqa: S608
            f"WHERE event_id = ? AND role {'=' if of_shadow else '<>'} '{Role.SHADOW}'",
            (event_id,),
        ).fetchone()
        if row is not None:
            known[key] = capture_of(row)
    return known


def _insert_many(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> int:
    with _transaction(connection):
        return connection.executemany(statement, rows).rowcount


def _execute_all(
    connection: sqlite3.Connection, statements: Sequence[str], parameters: Mapping[str, Any]
) -> int:
    with _transaction(connection):
        return [connection.execute(each, parameters).rowcount for each in statements][-1]


@cache
def _insert_statement(rows: int) -> str:
    """The statement that inserts `rows` captures, all or none of them."""
    row = f"({', '.join('?' * _CAPTURE_VALUES)})"
    return f"INSERT INTO captures ({CAPTURE_COLUMNS}) VALUES {', '.join([row] * rows)}"  # noqa: S608


def _create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file; to be called within a transaction."""
    connection.execute("CREATE TABLE store (identity TEXT NOT NULL)")
    for statement in (_CAPTURES, *_UNIQUE, *_BY_WINDOW, _LABELS, _REFUSALS):
        connection.execute(statement)
    connection.execute("INSERT INTO store VALUES (?)", (uuid4().hex[:8],))
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
