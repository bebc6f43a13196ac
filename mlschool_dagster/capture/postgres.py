"""Captures and labels in a PostgreSQL database, for servers on several machines.

The tables are made on first use. Commits are synchronous: what returned survives a crash of the
server.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson

from mlschool_dagster.capture.postgres_connections import WRITE_SECONDS, Connections
from mlschool_dagster.capture.postgres_format import (
    ADD_REFUSALS,
    FROM_VERSION_2,
    HAS_SCHEMA,
    INSERT_CAPTURES,
    INSERT_LABELS,
    INSERT_STORE,
    KNOWN_CAPTURES,
    LOCK_CAPTURES,
    LOCK_SCHEMA,
    MAY_WRITE,
    RIGHTS_OF_WRITER,
    SCHEMA,
    SCHEMA_VERSION,
    VERSION,
    new_identity,
)
from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.repetition import NOTHING_KNOWN, key_of, keys_concerned, settle
from mlschool_dagster.capture.rows import capture_of, capture_row
from mlschool_dagster.capture.sql import Row, SqlStore
from mlschool_dagster.capture.store import Appended, StoreRefusedError
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    from mlschool_dagster.capture.postgres_patience import Connection


MIGRATION_SECONDS = 3600.0
"""How long a store of an earlier release may take to be brought up to date."""


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
            return NOTHING_KNOWN
        from psycopg import DataError, IntegrityError
        from psycopg.errors import ProgramLimitExceeded, UniqueViolation

        rows = list(map(capture_row, captures))
        try:
            try:
                self._insert(INSERT_CAPTURES, rows)
            except UniqueViolation:
                return self._connections.run(
                    lambda connection: _insert_unknown(connection, captures), WRITE_SECONDS
                )
        except (DataError, IntegrityError, ProgramLimitExceeded, UnicodeError) as error:
            raise StoreRefusedError(
                f"The capture store {self._connections.name} does not take {len(rows)} captures "
                f"({type(error).__name__})."
            ) from error
        return NOTHING_KNOWN

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
                for statement in RIGHTS_OF_WRITER:
                    connection.execute(sql.SQL(statement).format(writer=writer))
                # To who has no right to give, PostgreSQL only gives a warning.
                answer = connection.execute(MAY_WRITE.encode(), (role,)).fetchone()
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
        return self._insert(INSERT_LABELS, rows)

    def _add_refusals(self, rows: Sequence[Row]) -> None:
        self._insert(ADD_REFUSALS, rows)

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
        if not _value(connection, HAS_SCHEMA):
            with connection.transaction():
                connection.execute(LOCK_SCHEMA)
                # Another process may have been first.
                if not _value(connection, HAS_SCHEMA):
                    _execute(connection, SCHEMA)
                    connection.execute(INSERT_STORE, (new_identity(), SCHEMA_VERSION))
        version = _value(connection, VERSION)
        if version == 2:
            version = _migrate(connection)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"The capture store {self._connections.name} has the format {version}, this "
                f"release writes {SCHEMA_VERSION}; use the release that wrote it or another "
                "database."
            )


def _migrate(connection: "Connection") -> int:
    """Bring version 2 to the present one; the version that it is then."""
    connection.seconds = MIGRATION_SECONDS
    with connection.transaction():
        connection.execute(LOCK_SCHEMA)
        if _value(connection, VERSION) == 2:
            _execute(connection, FROM_VERSION_2)
    return int(_value(connection, VERSION))


def _execute(connection: "Connection", statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def _value(connection: "Connection", query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def _insert(connection: "Connection", statement: str, rows: Sequence[Row]) -> int:
    return connection.execute(statement.encode(), (orjson.dumps(rows).decode(),)).rowcount


def _nothing(connection: "Connection") -> None:
    connection.execute(LOCK_CAPTURES)


def _insert_unknown(connection: "Connection", captures: Sequence[Capture]) -> Appended:
    with connection.transaction():
        connection.execute(LOCK_CAPTURES)
        event_ids = [event_id for event_id, _ in keys_concerned(captures)]
        rows = connection.execute(KNOWN_CAPTURES.encode(), (event_ids,)).fetchall()
        known = {key_of(capture): capture for capture in map(capture_of, rows)}
        appended, new = settle(captures, known)
        if new:
            _insert(connection, INSERT_CAPTURES, list(map(capture_row, new)))
    return appended


@cache
def _in_psycopg(query: str) -> bytes:
    return re.sub(r":(\w+)", r"%(\1)s", query).encode()
