"""A connection to PostgreSQL that does not wait for ever; importing it needs the driver."""

import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is answered within ``seconds``, or raises `psycopg.OperationalError`."""

    seconds = 5.0

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
