"""Captures and labels in a PostgreSQL database, for servers on several machines.

The tables are made on first use. Commits are synchronous: what returned survives a crash of the
server.

Rows come as one JSON parameter, so that a statement is one round trip however many rows there are.
Each of the kinds of rows with a sequence has an advisory lock, taken before a number is drawn and
held until the transaction's end: numbers become visible in their order, and a cursor skips nothing.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from mlschool_dagster.capture.idempotency import (
    NO_DUPLICATES,
    affected_keys,
    key_of,
    resolve_duplicates,
)
from mlschool_dagster.capture.import_log import Row, Transaction
from mlschool_dagster.capture.records import (
    CAPTURE_COLUMNS,
    CAPTURE_FIELDS,
    LABEL_COLUMNS,
    Capture,
    capture_of,
    capture_row,
)
from mlschool_dagster.capture.sql import SHADOWS, TRAFFIC, WINDOW_NUMBER, SqlStore
from mlschool_dagster.capture.store import Appended, InvalidCaptureError, StoreUnavailableError
from mlschool_dagster.errors import UserError
from mlschool_dagster.postgres import READ_SECONDS, Connection, PostgresDatabase, psycopg

T = TypeVar("T")

LOCK_SECONDS = 5
WRITE_SECONDS = LOCK_SECONDS + 1.0
"""Longest wait for the answer to a write."""
MOST_IDLE = 4
_UNAVAILABLE = (psycopg.OperationalError, psycopg.InternalError, psycopg.errors.UndefinedTable)
_INVALID_VALUES = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    UnicodeError,
)
"""Errors caused by the values themselves: a retry raises them again."""

_SCHEMA_VERSION = 3

# The first key of all locks is this package's own: others may lock in the same database.
_LOCKS = 1_836_280_931
_SCHEMA_LOCK, _CAPTURES_LOCK, _LABELS_LOCK = 0, 1, 2

_LOCK_SCHEMA = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_SCHEMA_LOCK})"
_LOCK_CAPTURES = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_CAPTURES_LOCK})"
_LOCK_LABELS = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_LABELS_LOCK})"

_SCHEMA = (
    "CREATE TABLE store (identity TEXT NOT NULL, version INTEGER NOT NULL)",
    """CREATE TABLE captures (
        sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id TEXT NOT NULL,
        captured_at BIGINT NOT NULL,
        endpoint TEXT NOT NULL,
        model_version TEXT NOT NULL,
        inputs TEXT NOT NULL,
        prediction TEXT NOT NULL,
        confidence DOUBLE PRECISION NOT NULL,
        probabilities TEXT NOT NULL,
        role TEXT NOT NULL,
        sampling_share DOUBLE PRECISION NOT NULL,
        probe SMALLINT NOT NULL
    )""",
    "COMMENT ON COLUMN captures.captured_at IS 'microseconds since 1970-01-01, UTC'",
    "CREATE UNIQUE INDEX answers ON captures (event_id) WHERE role <> 'shadow'",
    "CREATE UNIQUE INDEX shadows ON captures (event_id) WHERE role = 'shadow'",
    f"CREATE INDEX traffic_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {SHADOWS}",
    """CREATE TABLE labels (
        sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id TEXT NOT NULL,
        label TEXT NOT NULL,
        labelled_at BIGINT NOT NULL,
        source TEXT NOT NULL,
        UNIQUE (event_id, labelled_at, label, source)
    )""",
    "COMMENT ON COLUMN labels.labelled_at IS 'microseconds since 1970-01-01, UTC'",
    """CREATE TABLE refusals (
        window_number BIGINT NOT NULL,
        reason TEXT NOT NULL,
        requests BIGINT NOT NULL,
        PRIMARY KEY (window_number, reason)
    )""",
    "COMMENT ON COLUMN refusals.window_number IS 'hours since 1970-01-01, UTC'",
)
_RIGHTS_OF_WRITER = (
    "GRANT SELECT ON store TO {writer}",
    "GRANT SELECT, INSERT ON captures, refusals TO {writer}",
    # Requests are added to the count there is.
    "GRANT UPDATE (requests) ON refusals TO {writer}",
)
"""Rights of a server in its store: no captures are changed or deleted, and no labels seen."""
_MAY_WRITE = "SELECT has_table_privilege(%s, 'captures', 'INSERT')"
_INSERT_STORE = "INSERT INTO store VALUES (%s, %s)"
# Not to_regclass(): that answers from a cache which waiting for a lock does not renew.
_HAS_SCHEMA = (
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables "
    "WHERE schemaname = current_schema() AND tablename = 'store')"
)
_VERSION = "SELECT version FROM store"


def _insert_rows(table: str, columns: str, types: str, lock: str) -> str:
    """Insert rows, given as a JSON array of arrays, in their order and under `lock`."""
    values = ", ".join(
        f"(item ->> {position})::{type_}" for position, type_ in enumerate(types.split(", "))
    )
    return (
        f"WITH turn AS MATERIALIZED ({lock}) "  # noqa: S608
        f"INSERT INTO {table} ({columns}) SELECT {values} "
        "FROM turn, json_array_elements(%s::json) WITH ORDINALITY AS items (item, position) "
        "ORDER BY position"
    )


_INSERT_CAPTURES = _insert_rows(
    "captures",
    CAPTURE_COLUMNS,
    "text, bigint, text, text, text, text, float8, text, text, float8, smallint",
    _LOCK_CAPTURES,
)
_INSERT_LABELS = (
    _insert_rows("labels", LABEL_COLUMNS, "text, text, bigint, text", _LOCK_LABELS)
    + " ON CONFLICT DO NOTHING"
)
_ADD_REFUSALS = (
    _insert_rows("refusals", "window_number, reason, requests", "bigint, text, bigint", "SELECT 1")
    + " ON CONFLICT (window_number, reason) "
    "DO UPDATE SET requests = refusals.requests + excluded.requests"
)
_KNOWN_CAPTURES = f"SELECT {CAPTURE_FIELDS} FROM captures WHERE event_id = ANY(%s)"  # noqa: S608


class _Connections:
    """Connections to one database, for many threads; `prepare` sees each new one first.

    They are kept open between uses, and fail fast. psycopg's own pool would not do: it connects in
    the background and reports neither at once nor why a server cannot be reached, and a
    server's captures must not wait for it.
    """

    def __init__(self, database: PostgresDatabase, prepare: Callable[[Connection], None]) -> None:
        self._database = database
        self._prepare = prepare
        self._idle: list[Connection] = []
        self._changing = threading.Lock()

    def run(self, work: Callable[[Connection], T], seconds: float = READ_SECONDS) -> T:
        """The outcome of `work` with a connection in autocommit mode; each answer takes `seconds`.

        A connection that was idle may have died unnoticed: then `work` is done once more with a new
        one, so it must do no harm twice.

        Raises:
            StoreUnavailableError: the server cannot be reached, or does not do the work in time.
        """
        with self._errors():
            idle = self._take()
            if idle is not None:
                try:
                    return self._use(idle, work, seconds)
                except Exception:
                    if not idle.broken:
                        raise
                    # What broke it broke the others too.
                    self.close()
            return self._use(self._connect(), work, seconds)

    def close(self) -> None:
        """Close what is idle; what is in use is closed after it."""
        with self._changing:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connect(self) -> Connection:
        connection = self._database.connect("mlschool capture store", LOCK_SECONDS)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use(self, connection: Connection, work: Callable[[Connection], T], seconds: float) -> T:
        connection.seconds = seconds
        try:
            outcome = work(connection)
        except psycopg.IntegrityError:
            self._keep(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return outcome

    def _take(self) -> Connection | None:
        with self._changing:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: Connection) -> None:
        with self._changing:
            if len(self._idle) < MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.ProgramLimitExceeded:
            raise
        except (
            psycopg.OperationalError,
            psycopg.InternalError,
            psycopg.errors.UndefinedTable,
        ) as error:
            raise StoreUnavailableError(self._database.explain(error)) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise UserError(self._database.explain(error)) from None


class PostgresStore(SqlStore):
    """A capture store in the PostgreSQL database at `uri`, which is contacted on first use.

    Usable from several threads and processes, on any machine, at once. The tables are made in the
    first schema of the connection's search path.

    Raises:
        UserError: `uri` cannot be understood, or the driver is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._database = PostgresDatabase(uri, "capture store", "MLSCHOOL_CAPTURE_STORE")
        self._connections = _Connections(self._database, self._prepare)

    def append(self, captures: Sequence[Capture]) -> Appended:
        """See `CaptureStore.append`."""
        if not captures:
            self._connections.run(_nothing, WRITE_SECONDS)
            return NO_DUPLICATES
        rows = list(map(capture_row, captures))
        try:
            try:
                self._insert(_INSERT_CAPTURES, rows)
            except psycopg.errors.UniqueViolation:
                return self._connections.run(
                    lambda connection: _insert_unknown(connection, captures), WRITE_SECONDS
                )
        except (
            psycopg.DataError,
            psycopg.IntegrityError,
            psycopg.errors.ProgramLimitExceeded,
            UnicodeError,
        ) as error:
            raise InvalidCaptureError(
                f"The {self._database.name} does not take {len(rows)} captures "
                f"({type(error).__name__})."
            ) from error
        return NO_DUPLICATES

    def admit_writer(self, role: str) -> None:
        """Let `role` add captures and count refusals, which the owner of the tables can do.

        Doing it again changes nothing.

        Raises:
            UserError: there is no such role, or this user may not.
        """
        writer = psycopg.sql.Identifier(role)

        def grant(connection: Connection) -> bool:
            with connection.transaction():
                for statement in _RIGHTS_OF_WRITER:
                    connection.execute(psycopg.sql.SQL(statement).format(writer=writer))
                # To who has no right to give, PostgreSQL only gives a warning.
                answer = connection.execute(_MAY_WRITE.encode(), (role,)).fetchone()
            return bool(answer and answer[0])

        try:
            if not self._connections.run(grant, WRITE_SECONDS):
                raise UserError(
                    f"The {self._database.name} belongs to another user than the "
                    "one of its address; connect as its owner."
                )
        except psycopg.errors.UndefinedObject:
            raise UserError(
                f"The {self._database.name} has no role {role!r}; create it first."
            ) from None

    def close(self) -> None:
        """See `CaptureStore.close`."""
        self._connections.close()

    def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        return self._connections.run(
            lambda connection: list(connection.execute(_in_psycopg(query), parameters).fetchall())
        )

    def _insert_labels(self, rows: Sequence[Row]) -> int:
        return self._insert(_INSERT_LABELS, rows)

    def _add_refusals(self, rows: Sequence[Row]) -> None:
        self._insert(_ADD_REFUSALS, rows)

    def _change(self, statements: Sequence[str], parameters: Mapping[str, Any]) -> int:
        def change(connection: Connection) -> int:
            with connection.transaction():
                return [
                    connection.execute(_in_psycopg(each), parameters).rowcount
                    for each in statements
                ][-1]

        return self._connections.run(change, WRITE_SECONDS)

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        def transact(connection: Connection) -> T:
            with connection.transaction():
                connection.execute(_LOCK_CAPTURES)
                return work(_PostgresTransaction(connection))

        try:
            return self._connections.run(transact, READ_SECONDS)
        except _INVALID_VALUES as error:
            raise InvalidCaptureError(
                f"The {self._database.name} does not take what is imported "
                f"({type(error).__name__})."
            ) from error

    def _insert(self, statement: str, rows: Sequence[Row]) -> int:
        return self._connections.run(
            lambda connection: _insert(connection, statement, rows), WRITE_SECONDS
        )

    def _prepare(self, connection: Connection) -> None:
        if not _value(connection, _HAS_SCHEMA):
            with connection.transaction():
                connection.execute(_LOCK_SCHEMA)
                # Another process may have been first.
                if not _value(connection, _HAS_SCHEMA):
                    _execute(connection, _SCHEMA)
                    connection.execute(_INSERT_STORE, (uuid4().hex[:8], _SCHEMA_VERSION))
        version = _value(connection, _VERSION)
        if version != _SCHEMA_VERSION:
            raise UserError(
                f"The {self._database.name} has the format {version}, this "
                f"release writes {_SCHEMA_VERSION}; use the release that wrote it or another "
                "database."
            )


@dataclass(frozen=True, slots=True)
class _PostgresTransaction:
    """See `Transaction`."""

    connection: Connection

    def fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        cursor = self.connection.execute(_in_psycopg(query), parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def execute_many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> int:
        with self.connection.cursor() as cursor:
            cursor.executemany(_in_psycopg(statement), rows)
            return cursor.rowcount if rows else 0

    def insert_captures(self, rows: Sequence[Row]) -> None:
        if rows:
            _insert(self.connection, _INSERT_CAPTURES, rows)

    def insert_labels(self, rows: Sequence[Row]) -> int:
        return _insert(self.connection, _INSERT_LABELS, rows) if rows else 0

    def add_refusals(self, rows: Sequence[Row]) -> None:
        if rows:
            _insert(self.connection, _ADD_REFUSALS, rows)


def _execute(connection: Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def _insert(connection: Connection, statement: str, rows: Sequence[Row]) -> int:
    return connection.execute(statement.encode(), (orjson.dumps(rows).decode(),)).rowcount


def _nothing(connection: Connection) -> None:
    connection.execute(_LOCK_CAPTURES)


def _insert_unknown(connection: Connection, captures: Sequence[Capture]) -> Appended:
    with connection.transaction():
        connection.execute(_LOCK_CAPTURES)
        event_ids = [event_id for event_id, _ in affected_keys(captures)]
        rows = connection.execute(_KNOWN_CAPTURES.encode(), (event_ids,)).fetchall()
        known = {key_of(capture): capture for capture in map(capture_of, rows)}
        appended, new = resolve_duplicates(captures, known)
        if new:
            _insert(connection, _INSERT_CAPTURES, list(map(capture_row, new)))
    return appended


@cache
def _in_psycopg(query: str) -> bytes:
    return re.sub(r":(\w+)", r"%(\1)s", query).encode()
