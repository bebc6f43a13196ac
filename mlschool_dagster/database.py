"""How the platform's own tables are opened: SQLite by default, PostgreSQL by URI.

Belongs here: one engine for either database, its patience and its mishaps in a sentence. Does not
belong here: what a table means, and the capture store, which has its own drivers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mlschool_dagster.errors import UserError

BUSY_SECONDS = 30.0
"""How long a statement waits for another process that writes."""


class Database:
    """The database at `uri`, with the tables of `tables`, which are created if they do not exist.

    Raises:
        UserError: the URI cannot be used, or the database cannot be reached.
    """

    def __init__(self, uri: str, tables: MetaData) -> None:
        self._engine = _engine(uri)
        with self.transaction() as connection:
            tables.create_all(connection)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection whose work is kept if the block ends well, and undone if it raises.

        Raises:
            UserError: the database cannot be reached or used.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(
                f"The database {self._engine.url.render_as_string(hide_password=True)} cannot be "
                f"used ({cause}); check MLSCHOOL_HISTORY and that its server runs."
            ) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()


def _engine(uri: str) -> Engine:
    try:
        url = make_url(uri)
    except ArgumentError:
        raise UserError(
            "MLSCHOOL_HISTORY is no URI of a database; use sqlite:///path/to/file or "
            "postgresql://user:password@host/database."
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        return create_engine(url.set(drivername="postgresql+psycopg"))
    if url.drivername != "sqlite" or not url.database:
        raise UserError(
            f"MLSCHOOL_HISTORY has the scheme {url.drivername!r}; use sqlite:///path/to/file or "
            "postgresql://user:password@host/database."
        )
    Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection, _record):  # type: ignore[no-untyped-def]
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Who reads first and writes then must not find, in between, that another one wrote.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
