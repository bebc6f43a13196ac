"""HTTP on the wire, within limits: how much a client may send, and how slowly.

Without them a handful of clients that send a byte now and then could hold every connection that the
server has.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar
from weakref import WeakSet

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mlschool_dagster.serving.corked import CorkedTransport
from mlschool_dagster.serving.responses import error_body

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost.

    ``header_bytes`` bounds request line, headers and trailers together, ``request_bytes`` all that
    is sent for one request, however its body is cut into chunks. From its first byte, or from the
    connection's opening, a request's headers must be there within ``header_seconds`` and its body
    within ``body_seconds``; a client must take its answer within ``answer_seconds``. All is looked
    at once every ``sweep_seconds``.
    """

    header_bytes: int = 16 * 1024
    request_bytes: int = 16 * 1024**2
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 30.0
    sweep_seconds: float = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with `Limits`.

    No timer runs for a request. Each connection notes until when the client must have done its
    part, and one sweep over all connections ends those that are late.
    """

    limits: ClassVar[Limits] = Limits()
    _swept: ClassVar[WeakSet[ServerState]] = WeakSet()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline = NEVER
        self._answer_deadline = NEVER
        self._in_head = False
        # Bytes since the request began, unless it began behind another one.
        self._received = 0
        self._refusal = HTTPStatus.BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client its time for a first request."""
        super().connection_made(CorkedTransport(transport, self.loop))  # type: ignore[arg-type]
        self._expect_head()
        if self.server_state not in self._swept:
            self._swept.add(self.server_state)
            self._sweep_later(self.server_state, self.loop)

    def data_received(self, data: bytes) -> None:
        """Have `data` parsed, unless the request becomes too large."""
        self._expect_head()
        self._received += len(data)
        super().data_received(data)
        # Most requests come in one piece, and nothing more is expected by now.
        if self._deadline != NEVER:
            self._bound()

    def on_message_begin(self) -> None:
        """Expect headers."""
        self._expect_head()
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Expect the body, which has more time."""
        # Only a request that is large or came behind another one needs to be measured.
        if not 0 < self._received <= self.limits.header_bytes and self._head_is_too_large():
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("the headers are too large")
        self._in_head = False
        self._deadline += self.limits.body_seconds - self.limits.header_seconds
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect nothing more."""
        self._deadline = NEVER
        self._received = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note until when the client must take what waits for it."""
        self._answer_deadline = self.loop.time() + self.limits.answer_seconds
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._answer_deadline = NEVER
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(self._refusal)

    def _expect_head(self) -> None:
        if self._deadline == NEVER:
            self._deadline = self.loop.time() + self.limits.header_seconds

    def _bound(self) -> None:
        """Refuse the request that is being read if there is too much of it already."""
        in_head = self._in_head and self._received > self.limits.header_bytes
        if in_head or (self.headers and self._head_is_too_large()):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._received > self.limits.request_bytes:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def _head_is_too_large(self) -> bool:
        # A header's colon, space and line end count as four bytes.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > self.limits.header_bytes

    @classmethod
    def _sweep_later(cls, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(cls.limits.sweep_seconds, cls._sweep, state, loop)

    @classmethod
    def _sweep(cls, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        # A connection that ends leaves the set.
        for connection in list(state.connections):
            if isinstance(connection, LimitedProtocol) and connection._is_late(now):
                connection._expire(now)
        if state.connections:
            cls._sweep_later(state, loop)
        else:
            cls._swept.discard(state)

    def _is_late(self, now: float) -> bool:
        # One that is closing is looked at until it is closed.
        return now > self._deadline or now > self._answer_deadline or self.transport.is_closing()

    def _expire(self, now: float) -> None:
        if now > self._answer_deadline:
            self.transport.abort()
        elif self.transport.is_closing():
            # Closing waits until the client has taken what was written.
            self._answer_deadline = min(self._answer_deadline, now + self.limits.answer_seconds)
        elif not self._is_answering():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _is_answering(self) -> bool:
        """Whether a request that is complete has not been answered yet."""
        if self.pipeline:
            return True
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer `status` to the request that is being read, if any, and close the connection."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        in_body = cycle is not None and cycle.more_body and not cycle.response_started
        if (self._in_head or in_body) and not self._is_answering():
            body = error_body(f"{status.phrase}.")
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, status.phrase.encode(), len(body), body)
            )
        self.transport.close()
