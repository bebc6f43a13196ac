"""Captures and labels in a PostgreSQL database, for servers on several machines.

The tables are made on first use. Commits are synchronous: what returned survives a crash of the
server.

Rows come as one JSON parameter, so that a statement is one round trip however many rows there are.
Each of the kinds of rows with a sequence has an advisory lock, taken before a number is drawn and
held until the transaction's end: numbers become visible in their order, and a cursor skips nothing.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from mlschool_dagster.capture.idempotency import (
    NO_DUPLICATES,
    affected_keys,
    key_of,
    resolve_duplicates,
)
from mlschool_dagster.capture.postgres_connections import WRITE_SECONDS, Connections
from mlschool_dagster.capture.records import (
    CAPTURE_COLUMNS,
    CAPTURE_FIELDS,
    LABEL_COLUMNS,
    Capture,
    capture_of,
    capture_row,
)
from mlschool_dagster.capture.sql import SHADOWS, TRAFFIC, WINDOW_NUMBER, Row, SqlStore
from mlschool_dagster.capture.store import Appended, InvalidCaptureError
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    from mlschool_dagster.capture.postgres_patience import Connection


MIGRATION_SECONDS = 3600.0
"""How long a store of an earlier release may take to be brought up to date."""

_SCHEMA_VERSION = 3

# The first key of all locks is this package's own: others may lock in the same database.
_LOCKS = 1_836_280_931
_SCHEMA_LOCK, _CAPTURES_LOCK, _LABELS_LOCK = 0, 1, 2

_LOCK_SCHEMA = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_SCHEMA_LOCK})"
_LOCK_CAPTURES = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_CAPTURES_LOCK})"
_LOCK_LABELS = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_LABELS_LOCK})"

_BY_WINDOW = (
    f"CREATE INDEX traffic_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {SHADOWS}",
)
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
    *_BY_WINDOW,
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
"""What a server needs of its store: no captures are changed or deleted, and no labels seen."""
_MAY_WRITE = "SELECT has_table_privilege(%s, 'captures', 'INSERT')"
_INSERT_STORE = "INSERT INTO store VALUES (%s, %s)"
# Not to_regclass(): that answers from a cache which waiting for a lock does not renew.
_HAS_SCHEMA = (
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables "
    "WHERE schemaname = current_schema() AND tablename = 'store')"
)
_VERSION = "SELECT version FROM store"
_FROM_VERSION_2 = (
    # Whoever appends waits until the indices are there.
    "SET LOCAL statement_timeout = 0",
    "DROP INDEX traffic_by_time",
    "DROP INDEX shadows_by_time",
    *_BY_WINDOW,
    f"UPDATE store SET version = {_SCHEMA_VERSION}",  # noqa: S608
)


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


class PostgresStore(SqlStore):
    """A capture store in the PostgreSQL database at `uri`, which is contacted on first use.

    Usable from several threads and processes, on any machine, at once. The tables are made in the
    first schema of the connection's search path.

    Raises:
        UserError: `uri` cannot be understood, or the driver is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._connections = Connections(uri, self._prepare)

    def append(self, captures: Sequence[Capture]) -> Appended:
        """See `CaptureStore.append`."""
        if not captures:
            self._connections.run(_nothing, WRITE_SECONDS)
            return NO_DUPLICATES
        from psycopg import DataError, IntegrityError
        from psycopg.errors import ProgramLimitExceeded, UniqueViolation

        rows = list(map(capture_row, captures))
        try:
            try:
                self._insert(_INSERT_CAPTURES, rows)
            except UniqueViolation:
                return self._connections.run(
                    lambda connection: _insert_unknown(connection, captures), WRITE_SECONDS
                )
        except (DataError, IntegrityError, ProgramLimitExceeded, UnicodeError) as error:
            raise InvalidCaptureError(
                f"The capture store {self._connections.name} does not take {len(rows)} captures "
                f"({type(error).__name__})."
            ) from error
        return NO_DUPLICATES

    def admit_writer(self, role: str) -> None:
        """Let `role` add captures and count refusals, which the owner of the tables can do.

        Doing it again changes nothing.

        Raises:
            UserError: there is no such role, or this user may not.
        """
        from psycopg import sql
        from psycopg.errors import UndefinedObject

        writer = sql.Identifier(role)

        def grant(connection: "Connection") -> bool:
            with connection.transaction():
                for statement in _RIGHTS_OF_WRITER:
                    connection.execute(sql.SQL(statement).format(writer=writer))
                # To who has no right to give, PostgreSQL only gives a warning.
                answer = connection.execute(_MAY_WRITE.encode(), (role,)).fetchone()
            return bool(answer and answer[0])

        try:
            if not self._connections.run(grant, WRITE_SECONDS):
                raise UserError(
                    f"The capture store {self._connections.name} belongs to another user than the "
                    "one of its address; connect as its owner."
                )
        except UndefinedObject:
            raise UserError(
                f"The capture store {self._connections.name} has no role {role!r}; create it first."
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
        def change(connection: "Connection") -> int:
            with connection.transaction():
                return [
                    connection.execute(_in_psycopg(each), parameters).rowcount
                    for each in statements
                ][-1]

        return self._connections.run(change, WRITE_SECONDS)

    def _insert(self, statement: str, rows: Sequence[Row]) -> int:
        return self._connections.run(
            lambda connection: _insert(connection, statement, rows), WRITE_SECONDS
        )

    def _prepare(self, connection: "Connection") -> None:
        if not _value(connection, _HAS_SCHEMA):
            with connection.transaction():
                connection.execute(_LOCK_SCHEMA)
                # Another process may have been first.
                if not _value(connection, _HAS_SCHEMA):
                    _execute(connection, _SCHEMA)
                    connection.execute(_INSERT_STORE, (uuid4().hex[:8], _SCHEMA_VERSION))
        version = _value(connection, _VERSION)
        if version == 2:
            version = _migrate(connection)
        if version != _SCHEMA_VERSION:
            raise UserError(
                f"The capture store {self._connections.name} has the format {version}, this "
                f"release writes {_SCHEMA_VERSION}; use the release that wrote it or another "
                "database."
            )


def _migrate(connection: "Connection") -> int:
    """Bring version 2 to the present one; the version that it is then."""
    connection.seconds = MIGRATION_SECONDS
    with connection.transaction():
        connection.execute(_LOCK_SCHEMA)
        if _value(connection, _VERSION) == 2:
            _execute(connection, _FROM_VERSION_2)
    return int(_value(connection, _VERSION))


def _execute(connection: "Connection", statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def _value(connection: "Connection", query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def _insert(connection: "Connection", statement: str, rows: Sequence[Row]) -> int:
    return connection.execute(statement.encode(), (orjson.dumps(rows).decode(),)).rowcount


def _nothing(connection: "Connection") -> None:
    connection.execute(_LOCK_CAPTURES)


def _insert_unknown(connection: "Connection", captures: Sequence[Capture]) -> Appended:
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
