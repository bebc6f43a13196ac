"""Connections to the platform's own tables: SQLite by default, PostgreSQL by URI.

Belongs here: one SQLAlchemy engine for either database, its transactions and timeouts, and its
errors as sentences. Does not belong here: what a table means, and the capture store, which does
without SQLAlchemy.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError

from mlschool_dagster.credentials import public_uri
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    import psycopg

BUSY_SECONDS = 30.0
"""Lock timeout of a statement while another process writes."""
SETTING = "MLSCHOOL_HISTORY"
_POLL_SECONDS = 0.01
_READING = "reading"
_BEGIN_WRITING = {
    "sqlite": "BEGIN IMMEDIATE",
    # The keys of such locks are numbers; this one is nobody else's.
    "postgresql": "SELECT pg_advisory_xact_lock(1836280932)",
}


_OWNER = Table("owner", MetaData(), Column("model", Text, primary_key=True))


@cache
def claim(uri: str, model: str) -> None:
    """Make sure that the database at `uri` is that of the data spec named `model`, and no other's.

    Raises:
        UserError: it belongs to another model, or cannot be used.
    """
    database = Database(uri, _OWNER.metadata)
    try:
        with database.reading() as connection:
            known = connection.scalar(select(_OWNER.c.model))
        if known is None:
            with database.transaction() as connection:
                # Another process may have been faster.
                known = connection.scalar(select(_OWNER.c.model))
                if known is None:
                    connection.execute(insert(_OWNER).values(model=model))
    finally:
        database.close()
    if known not in (None, model):
        raise UserError(
            f"The database {public_uri(uri)} belongs to the model {known}, but the data spec is "
            f"that of {model}; let {SETTING} name a database of its own for it."
        )


class Database:
    """The database at `uri`, with the tables of `tables`, which are created if they do not exist.

    Usable from many threads and processes at once. No error that it raises has a password in it.

    Raises:
        UserError: the URI cannot be used, or the database cannot be reached.
    """

    def __init__(self, uri: str, tables: MetaData) -> None:
        self._engine, self._explain = _engine(uri)
        with self.reading() as connection:
            complete = set(tables.tables) <= set(inspect(connection).get_table_names())
        if not complete:
            with self.transaction() as connection:
                tables.create_all(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection whose work is kept if the block ends well, and undone if it raises.

        One is let in at a time: who reads first and writes then finds that nobody wrote in between.

        Raises:
            UserError: the database cannot be reached or used.
        """
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, in one snapshot; it waits for nobody who writes.

        Raises:
            UserError: the database cannot be reached or used.
        """
        engine = self._engine.execution_options(**{_READING: True})
        with self._errors(), engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, DataError):
            # What was to be written is wrong, not the database.
            raise
        except DBAPIError as error:
            raise UserError(self._explain(error)) from None


def _engine(uri: str) -> tuple[Engine, Callable[[DBAPIError], str]]:
    """The engine for `uri`, and what words an error of its driver."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in ("postgres", "postgresql"):
        engine, explain = _postgres(uri)
    else:
        try:
            url = make_url(uri)
        except (ArgumentError, ValueError):
            url = None
        if url is None or url.drivername != "sqlite" or not url.database:
            raise UserError(
                f"{SETTING} is no URI of a database that can be used; use sqlite:///path/to/file "
                "or postgresql://user:password@host/database."
            )
        engine, explain = _sqlite(url, Path(url.database).absolute())
    event.listen(engine, "begin", _begin)
    return engine, explain


def _begin(connection: Connection) -> None:
    dialect = connection.engine.dialect.name
    if not connection.get_execution_options().get(_READING):
        connection.exec_driver_sql(_BEGIN_WRITING[dialect])
    elif dialect == "sqlite":
        # The driver begins nothing itself before something is written.
        connection.exec_driver_sql("BEGIN")


def _postgres(uri: str) -> tuple[Engine, Callable[[DBAPIError], str]]:
    # Not where SQLite does.
    from mlschool_dagster.postgres import PostgresDatabase

    database = PostgresDatabase(uri, "database", SETTING)

    def connect() -> "psycopg.Connection[Any]":
        connection = database.connect("mlschool platform", int(BUSY_SECONDS))
        connection.autocommit = False
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, pool_pre_ping=True)
    return engine, lambda error: database.explain(error.orig or error)


def _sqlite(url: URL, path: Path) -> tuple[Engine, Callable[[DBAPIError], str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder of the database {path} cannot be used ({error.strerror}); choose another "
            f"by {SETTING}."
        ) from None
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        _enter_wal(connection)

    advice = f"check {SETTING}, that you may write there, and that its disk has room"
    return engine, lambda error: f"The database {path} cannot be used ({error.orig}); {advice}."


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Have readers and the writer not wait for each other; SQLite itself has no patience here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # The low byte is the kind of error, the rest its details.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)
