"""Access to PostgreSQL: one way to connect, to wait and to word errors, for all that use it.

Belongs here: what the capture store and the platform's own tables have in common. Does not belong
here: tables, statements, and who keeps connections open. Importing this module needs the driver.
"""

import time
from typing import Any

from mlschool_dagster.errors import UserError

try:
    import psycopg as psycopg
    from psycopg.abc import RV, PQGen
except ImportError:
    raise UserError(
        "The driver for PostgreSQL is not installed; run pip install 'mlschool-dagster[postgres]'."
    ) from None

CONNECT_SECONDS = 3
STATEMENT_SECONDS = 30
READ_SECONDS = STATEMENT_SECONDS + 2.0
"""Longest wait for an answer: a server that hangs does not end its statements itself."""
SILENCE_SECONDS = 5
"""Time without acknowledgement after which a connection counts as broken."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is answered within ``seconds``, or raises `psycopg.OperationalError`."""

    seconds = READ_SECONDS

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        """See `psycopg.Connection.wait`, through which all waiting for the server goes."""
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: PQGen[RV]) -> PQGen[RV]:
        deadline = time.monotonic() + self.seconds
        try:
            waiting_for = next(gen)
            while True:
                ready = yield waiting_for
                if time.monotonic() > deadline:
                    raise psycopg.OperationalError(f"no answer within {self.seconds:g} seconds")
                waiting_for = gen.send(ready)
        except StopIteration as end:
            outcome: RV = end.value
            return outcome


class PostgresDatabase:
    """The database at `uri`, which is not contacted before `connect`.

    `noun` and `setting` name it in errors: what it is, and the variable that holds its URI. No
    error has the password in it.

    Raises:
        UserError: `uri` cannot be understood.
    """

    def __init__(self, uri: str, noun: str, setting: str) -> None:
        try:
            address = psycopg.conninfo.conninfo_to_dict(uri)
        except psycopg.ProgrammingError:
            address = {"port": "not understood"}
        # A password with an @ or / in it ends up in host or port, where every error would show it.
        ports = str(address.get("port") or "5432").split(",")
        if "@" in str(address.get("host")) or not all(map(str.isdecimal, ports)):
            raise UserError(
                f"The address in {setting} cannot be understood; write it as "
                "postgresql://user:password@host:port/database, with what is special in it "
                "percent-encoded."
            )
        self._uri = uri
        self._setting = setting
        self._password = str(address.get("password") or "")
        host = address.get("host", "localhost")
        self.name = f"{noun} {address.get('dbname', '')} at {host}"

    def connect(self, application: str, lock_seconds: int) -> Connection:
        """A new connection in autocommit mode, which waits for another's lock for `lock_seconds`.

        Raises:
            psycopg.OperationalError: the server cannot be reached.
        """
        connection = Connection.connect(
            self._uri,
            autocommit=True,
            # In a database whose encoding is SQL_ASCII texts would come as bytes.
            client_encoding="UTF8",
            connect_timeout=CONNECT_SECONDS,
            tcp_user_timeout=SILENCE_SECONDS * 1000,
            application_name=application,
        )
        try:
            connection.execute(
                f"SET statement_timeout = '{STATEMENT_SECONDS}s'; "
                f"SET lock_timeout = '{lock_seconds}s'; "
                "SET synchronous_commit = on; SET client_min_messages = warning"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def explain(self, error: BaseException) -> str:
        """One sentence for an error of the driver: what is wrong, where, what to do."""
        cause = " ".join(str(error).split())
        if self._password:
            cause = cause.replace(self._password, "***")
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            advice = "grant its user the right to create and fill tables"
        else:
            advice = f"check {self._setting}, and that its server is up, reachable and has room"
        return f"The {self.name} cannot be used ({cause}); {advice}."
