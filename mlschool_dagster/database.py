"""How the platform's own tables are opened: SQLite by default, PostgreSQL by URI.

Belongs here: one engine for either database, its patience and its mishaps in a sentence. Does not
belong here: what a table means, and the capture store, which has its own drivers.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError

from mlschool_dagster.credentials import public_uri
from mlschool_dagster.errors import UserError

BUSY_SECONDS = 30.0
"""How long a statement waits for another process that writes."""
CONNECT_SECONDS = 5
"""How long a server may take to answer."""
_POLL_SECONDS = 0.01
_READING = "reading"
_BEGIN_WRITING = {
    "sqlite": "BEGIN IMMEDIATE",
    # The keys of such locks are numbers; this one is nobody else's.
    "postgresql": "SELECT pg_advisory_xact_lock(1836280932)",
}


class Database:
    """The database at `uri`, with the tables of `tables`, which are created if they do not exist.

    Usable from many threads and processes at once. No error that it raises has a password in it.

    Raises:
        UserError: the URI cannot be used, or the database cannot be reached.
    """

    def __init__(self, uri: str, tables: MetaData) -> None:
        self._engine = _engine(uri)
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
        with self._mishaps(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, in one snapshot; it waits for nobody who writes.

        Raises:
            UserError: the database cannot be reached or used.
        """
        engine = self._engine.execution_options(**{_READING: True})
        with self._mishaps(), engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    @contextmanager
    def _mishaps(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, DataError):
            # What was to be written is wrong, not the database.
            raise
        except DBAPIError as error:
            cause = str(error.orig).strip().splitlines()[0]
            raise UserError(
                f"The database {public_uri(self._engine.url.render_as_string())} cannot be "
                f"used ({cause}); check MLSCHOOL_HISTORY and that its server runs."
            ) from None


def _engine(uri: str) -> Engine:
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise UserError(
            "MLSCHOOL_HISTORY is no URI of a database; use sqlite:///path/to/file or "
            "postgresql://user:password@host/database."
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        engine = _postgres(url)
    elif url.drivername == "sqlite" and url.database:
        engine = _sqlite(url, Path(url.database).absolute())
    else:
        raise UserError(
            f"MLSCHOOL_HISTORY has the scheme {url.drivername!r}; use sqlite:///path/to/file or "
            "postgresql://user:password@host/database."
        )
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    dialect = connection.engine.dialect.name
    if not connection.get_execution_options().get(_READING):
        connection.exec_driver_sql(_BEGIN_WRITING[dialect])
    elif dialect == "sqlite":
        # The driver begins nothing itself before something is written.
        connection.exec_driver_sql("BEGIN")


def _postgres(url: URL) -> Engine:
    # A password with an @ in it ends up in the host, where every error would show it.
    if "@" in (url.host or ""):
        raise UserError(
            "MLSCHOOL_HISTORY cannot be understood; percent-encode what is special in its password."
        )
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            # In a database whose encoding is SQL_ASCII texts would come as bytes.
            connect_args={"connect_timeout": CONNECT_SECONDS, "client_encoding": "UTF8"},
        )
    except ImportError:
        raise UserError(
            "The driver for PostgreSQL is not installed; "
            "run pip install 'mlschool-dagster[postgres]'."
        ) from None


def _sqlite(url: URL, path: Path) -> Engine:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder of the database {path} cannot be used ({error.strerror}); choose another "
            "by MLSCHOOL_HISTORY."
        ) from None
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        _enter_wal(connection)

    return engine


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
