"""Connections to one PostgreSQL database: kept open between uses, and failing fast.

Does without psycopg's own pool: that connects in the background and tells a caller neither at once
nor why a server cannot be reached, and a server's captures must not wait for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mlschool_dagster.capture.store import StoreUnavailableError
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    from mlschool_dagster.capture.postgres_patience import Connection

T = TypeVar("T")

CONNECT_SECONDS = 3
STATEMENT_SECONDS = 30
LOCK_SECONDS = 5
SILENCE_SECONDS = 5
"""How long data may stay without acknowledgement before a connection counts as broken."""
READ_SECONDS = STATEMENT_SECONDS + 2.0
WRITE_SECONDS = LOCK_SECONDS + 1.0
"""How long an answer is waited for: a server that hangs does not end its statements itself."""
MOST_IDLE = 4

_SESSION = (
    f"SET statement_timeout = '{STATEMENT_SECONDS}s'; SET lock_timeout = '{LOCK_SECONDS}s'; "
    "SET synchronous_commit = on; SET client_min_messages = warning"
)


class Connections:
    """Connections to the database at `uri`, for many threads; `prepare` sees each new one first.

    Making it connects to nothing. No error that it raises has the password in it.

    Raises:
        UserError: `uri` cannot be understood, or the driver is not installed.
    """

    def __init__(self, uri: str, prepare: "Callable[[Connection], None]") -> None:
        address = _understood(uri)
        self._uri = uri
        self._prepare = prepare
        self.name = f"{address.get('dbname', '')} at {address.get('host', 'localhost')}"
        self._password = str(address.get("password") or "")
        self._idle: list[Connection] = []
        self._changing = threading.Lock()

    def run(self, work: "Callable[[Connection], T]", seconds: float = READ_SECONDS) -> T:
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

    def _connect(self) -> "Connection":
        from mlschool_dagster.capture.postgres_patience import Connection

        connection = Connection.connect(
            self._uri,
            autocommit=True,
            # In a database whose encoding is SQL_ASCII texts would come as bytes.
            client_encoding="UTF8",
            connect_timeout=CONNECT_SECONDS,
            tcp_user_timeout=SILENCE_SECONDS * 1000,
            application_name="mlschool capture store",
        )
        try:
            connection.execute(_SESSION)
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use(
        self, connection: "Connection", work: "Callable[[Connection], T]", seconds: float
    ) -> T:
        import psycopg

        connection.seconds = seconds
        try:
            outcome = work(connection)
        except psycopg.errors.IntegrityError:
            self._keep(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return outcome

    def _take(self) -> "Connection | None":
        with self._changing:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: "Connection") -> None:
        with self._changing:
            if len(self._idle) < MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from psycopg import InternalError, OperationalError
        from psycopg.errors import InsufficientPrivilege, ProgramLimitExceeded, UndefinedTable

        try:
            yield
        except ProgramLimitExceeded:
            raise
        except (OperationalError, InternalError, UndefinedTable) as error:
            raise StoreUnavailableError(
                f"The capture store {self.name} cannot be used ({self._told(error)}); check that "
                "the server is up, reachable and has room."
            ) from None
        except InsufficientPrivilege as error:
            raise UserError(
                f"The capture store {self.name} may not be used ({self._told(error)}); grant its "
                "user the right to create and fill tables."
            ) from None

    def _told(self, error: Exception) -> str:
        told = " ".join(str(error).split())
        return told.replace(self._password, "***") if self._password else told


def _understood(uri: str) -> dict[str, Any]:
    try:
        import psycopg
    except ImportError:
        raise UserError(
            "The driver for PostgreSQL is not installed; "
            "run pip install 'mlschool-dagster[postgres]'."
        ) from None
    try:
        address = psycopg.conninfo.conninfo_to_dict(uri)
    except psycopg.ProgrammingError:
        address = {"port": "not understood"}
    # A password with an @ or / in it ends up in host or port, where every error would show it.
    ports = str(address.get("port") or "5432").split(",")
    if "@" in str(address.get("host")) or not all(map(str.isdecimal, ports)):
        raise UserError(
            "The address of the capture store cannot be understood; write it as "
            "postgresql://user:password@host:port/database, with what is special in it "
            "percent-encoded."
        )
    return address
