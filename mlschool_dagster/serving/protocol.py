"""HTTP/1.1 on uvicorn's protocol, with limits: what a connection may cost, and how slow it may be.

Without them a handful of clients that send a byte now and then could hold every connection of the
server. Nothing is parsed after a refusal.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import Any, ClassVar
from urllib.parse import unquote
from weakref import WeakSet

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mlschool_dagster.serving.framing import (
    RefusedRequestError,
    refused,
    require_clear_framing,
    require_single,
    target_of,
)
from mlschool_dagster.serving.responses import (
    CLOSE,
    COUNT_ANSWER,
    OPEN_PATHS,
    RETRY_LATER,
    Headers,
    error_body,
    send_json,
)
from mlschool_dagster.serving.server_config import OVERFLOW

SMALL = 16 * 1024
"""Bytes up to which writes are joined."""


class CoalescingTransport:
    """Wrapper of `transport` that sends an answer in one packet and closes gently.

    Small writes are joined until the loop's next turn: uvicorn writes head and body of a response
    one after the other, and each would be a system call of the server and a wake-up of the client.
    ``close`` leaves it to `close_gently` how the connection ends, ``end`` closes it.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close_gently: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close_gently = close_gently
        self._pending: list[bytes] = []
        self._is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` with whatever else is written in this turn of the loop."""
        if not self._pending:
            self._loop.call_soon(self._send)
        self._pending.append(data)
        if len(data) > SMALL:
            # Whoever sends much must learn when the client does not take it.
            self._send()

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._is_closing or self._transport.is_closing()

    def close(self) -> None:
        """Send what waits and close the connection gently."""
        if not self.is_closing():
            self._is_closing = True
            self._send()
            self._close_gently()

    def end(self) -> None:
        """Send what waits and close the connection."""
        self._is_closing = True
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._is_closing = True
        self._pending.clear()
        self._transport.abort()

    def _send(self) -> None:
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            if not self._transport.is_closing():
                self._transport.write(data)


NEVER = BUSY = float("inf")

_KEEP_ALIVE = (b"connection", b"keep-alive")
_idle_ranks = count()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a connection.

    ``header_bytes`` bounds request line, headers and trailers together, ``request_bytes`` all that
    is sent for one request, however its body is cut into chunks. From its first byte a request's
    headers must be there within ``header_seconds`` and its body within ``body_seconds``; a client
    must take its answer within ``answer_seconds``. What a client goes on sending after a refusal is
    discarded, up to ``discarded_bytes`` within ``body_seconds``, so that it gets to read the
    answer. A connection may be silent for ``preconnect_seconds`` before its first request and for
    ``keep_alive_seconds`` between two. A sweep over all connections checks the times every
    ``sweep_seconds``.

    A worker has ``connections``; another one takes the place of the one that has been idle longest,
    or is answered 503. ``pipelined`` requests may wait behind the one that is being answered.
    """

    header_bytes: int = 16 * 1024
    request_bytes: int = 16 * 1024**2
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 30.0
    sweep_seconds: float = 1.0
    keep_alive_seconds: float
    preconnect_seconds: float
    connections: int
    pipelined: int = 32
    discarded_bytes: int = 256 * 1024**2


class Cycle(RequestResponseCycle):
    """One request and its response; an answer given before the request has ended is the last."""

    async def send(self, message: Any) -> None:
        """Send a part of the response."""
        if self.more_body and not self.response_started:
            self.keep_alive = False
        await super().send(message)

    async def send_500_response(self) -> None:
        """Answer for an application that failed."""
        await send_json(self.send, error_body("The server failed to answer."), 500, CLOSE)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with `Limits`, and without its ambiguities.

    No timer runs for a request. Each connection notes until when the client must have done its
    part, and one sweep over all connections ends those that are late.
    """

    limits: ClassVar[Limits]
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
        # Lower the longer the connection has been idle; `BUSY` while it reads or answers a request.
        self._idle_rank: float = BUSY
        self._in_head = False
        self._trailer_bytes = 0
        # Bytes since the request began, unless it began behind another one.
        self._received = 0
        self._refusal: RefusedRequestError | None = None
        # Nothing more is parsed: what still arrives is discarded.
        self._is_deaf = False
        self._has_ended = False
        self._is_upgrade = False
        self._is_surplus = False
        self._running: Cycle | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, and give the client its time for a first request."""
        super().connection_made(CoalescingTransport(transport, self.loop, self._linger))  # type: ignore[arg-type]
        self._rest(self.limits.preconnect_seconds)
        if self.server_state not in self._swept:
            self._swept.add(self.server_state)
            self._sweep_later(self.server_state, self.loop)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Have `data` parsed, unless the request becomes too large."""
        self._received += len(data)
        if self._is_deaf:
            self._discard()
            return
        if self._deadline == NEVER or self._idle_rank != BUSY:
            self._idle_rank = BUSY
            self._deadline = self.loop.time() + self.limits.header_seconds
        self._parse(data)
        # Most requests come in one piece, and nothing more is expected by now.
        if self._deadline != NEVER and not self._is_deaf:
            self._bound()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what was asked: a client may close its half of the connection and wait."""
        self._has_ended = True
        if not self._is_deaf:
            self._refuse(
                RefusedRequestError(HTTPStatus.BAD_REQUEST, "The request ended before its body did")
            )
        return self._is_answering()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the application that is still answering."""
        self._is_deaf = True
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note until when the client must take its answer."""
        if self._answer_deadline == NEVER:
            self._answer_deadline = self.loop.time() + self.limits.answer_seconds
        super().pause_writing()

    def resume_writing(self) -> None:
        """Let the answer go on; one that is complete has been taken."""
        if self._running is None or self._running.response_complete:
            self._answer_deadline = NEVER
        super().resume_writing()

    def shutdown(self) -> None:
        """Let the requests under way be answered, and close the connection."""
        if self._is_answering() or (self.cycle is not None and not self.cycle.response_complete):
            self.cycle.keep_alive = False
        elif not self._is_deaf:
            self._end()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Expect headers."""
        if self._deadline == NEVER:
            self._deadline = self.loop.time() + self.limits.header_seconds
        self._in_head = True
        self._trailer_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; one of the trailer is none (RFC 9110, 6.5.1)."""
        if self._in_head:
            self.headers.append((name.lower(), value))
        else:
            self._trailer_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        """Begin to answer the request, or refuse it; expect its body, which has more time."""
        try:
            self._take_head()
        except RefusedRequestError as refusal:
            self._refusal = refusal
            raise

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        if not self._is_upgrade:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect nothing more."""
        if self._is_upgrade:
            return
        self._deadline = NEVER
        self._received = 0
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        if not self.cycle.keep_alive:
            # Whatever follows will not be answered.
            self._is_deaf = True
            raise StopParsingError

    # What a response calls.

    def on_response_complete(self) -> None:
        """Answer the next request, or wait for it."""
        self.server_state.total_requests += 1
        if not self.flow.write_paused:
            self._answer_deadline = NEVER
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._deadline == NEVER:
            self._rest(self.limits.keep_alive_seconds)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    # Parsing.

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._is_deaf:
                return
            self._refuse(
                self._refusal
                or RefusedRequestError(
                    HTTPStatus.BAD_REQUEST, f"The request is not valid HTTP/1.1 ({error})"
                )
            )

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Read the request whose head has been parsed again, as one that asks for no upgrade.

        The parser takes whatever follows a request with ``Upgrade`` for another protocol, its body
        included. A server may ignore the field (RFC 9110, 7.8).
        """
        self._is_upgrade = False
        line = b"%s %s HTTP/%s\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"".join([line, *fields, b"\r\n", rest]))

    def _take_head(self) -> None:
        # Only a request that is large or came behind another one needs to be measured.
        if not 0 < self._received <= self.limits.header_bytes and self._head_is_too_large():
            raise refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        parser, headers = self.parser, self.headers
        fields = dict(headers)
        version, method = parser.get_http_version(), parser.get_method().decode("ascii")
        if len(fields) != len(headers):
            require_single(headers)
        require_clear_framing(version, method, fields)
        raw_path, query = target_of(self.url, fields.get(b"host"))
        if parser.should_upgrade():
            self._is_upgrade = True
            return
        path = raw_path.decode("ascii")
        if self._is_surplus and path not in OPEN_PATHS:
            raise refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "The server has no connection left; try again"
            )
        if len(self.pipeline) >= self.limits.pipelined:
            # Requests behind an answer that closes the connection are to be sent again.
            self.cycle.keep_alive = False
            self._is_deaf = True
            self._deadline = NEVER
            raise StopParsingError
        self._in_head = False
        self._deadline += self.limits.body_seconds - self.limits.header_seconds
        keep_alive = bool(parser.should_keep_alive())
        default_headers = self.server_state.default_headers
        if version == "1.0":
            self.scope["http_version"] = version
            if keep_alive:
                default_headers = [*default_headers, _KEEP_ALIVE]
        self.scope["method"] = method
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = raw_path
        self.scope["query_string"] = query
        cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=version == "1.1" and b"expect" in fields,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        is_first = self.cycle is None or self.cycle.response_complete
        self.cycle = cycle
        if is_first:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _bound(self) -> None:
        """Refuse the request that is being read if there is too much of it already."""
        head = self._in_head and self._received > self.limits.header_bytes
        if head or self._trailer_bytes > self.limits.header_bytes:
            self._refuse(refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif self._received > self.limits.request_bytes:
            self._refuse(refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE))

    def _head_is_too_large(self) -> bool:
        # A header's colon, space and line end count as four bytes.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > self.limits.header_bytes

    # Ending a connection.

    def _refuse(self, refusal: RefusedRequestError) -> None:
        """Answer the request that is being read with `refusal`, and parse nothing more.

        Requests before it are answered first, as the last ones of the connection.
        """
        self._is_deaf = True
        self._idle_rank, self._deadline = BUSY, NEVER
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle is self._running:
                if not cycle.response_started:
                    self._answer(refusal)
                self.transport.close()
                return
            # It waits behind others, and its connection ends with the last of them.
            self.pipeline.popleft()
            newest = self.pipeline[0][0] if self.pipeline else self._running
            self.cycle = newest  # type: ignore[assignment]
        if self._is_answering():
            self.cycle.keep_alive = False
            return
        if self._in_head:
            self._answer(refusal)
        self.transport.close()

    def _answer(self, refusal: RefusedRequestError) -> None:
        status = refusal.status
        headers: Headers = RETRY_LATER if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
        body = error_body(f"{refusal.message}.")
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n%s\r\n%s"
            % (
                status,
                status.phrase.encode(),
                len(body),
                b"".join(b"%s: %s\r\n" % field for field in headers),
                body,
            )
        )
        self._count(status)

    def _count(self, status: int) -> None:
        count: Callable[[int], None] | None = self.app_state.get(COUNT_ANSWER)
        if count is not None:
            count(status)

    def _is_answering(self) -> bool:
        """Whether a request that is complete has not been answered yet."""
        if self.pipeline:
            return True
        cycle = self._running
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _linger(self) -> None:
        """Close the connection once the client has.

        Closing at once, while the client is still sending, would make the system reset the
        connection, and the client would lose the answer (RFC 9112, 9.6).
        """
        self._is_deaf = True
        self._received = 0
        self._idle_rank = BUSY
        self.pipeline.clear()
        self._deadline = self.loop.time() + self.limits.body_seconds
        transport = self.transport
        if self._has_ended:
            transport.end()  # type: ignore[attr-defined]
        else:
            transport.write_eof()
            self.flow.resume_reading()

    def _end(self) -> None:
        """Close the connection, on which nothing is under way."""
        self._is_deaf = True
        self._deadline = self.loop.time() + self.limits.answer_seconds
        self.transport.end()  # type: ignore[attr-defined]

    def _discard(self) -> None:
        if self._received > self.limits.discarded_bytes and self.transport.is_closing():
            self.transport.abort()

    def _rest(self, seconds: float) -> None:
        """Let the client be silent for `seconds`."""
        # The loop's clock has milliseconds: connections of the same one would be in no order.
        self._idle_rank = next(_idle_ranks)
        self._deadline = self.loop.time() + seconds

    def _make_room(self) -> None:
        """End what has been idle longest, or mark this connection as one too many."""
        others = [
            connection
            for connection in self.connections
            if isinstance(connection, LimitedProtocol) and connection is not self
        ]
        if len(others) >= OVERFLOW * self.limits.connections:
            self._count(HTTPStatus.SERVICE_UNAVAILABLE)
            self.transport.abort()
            return
        lingering = next((other for other in others if other.transport.is_closing()), None)
        if lingering is not None:
            lingering.transport.abort()
            return
        idle = min(others, key=lambda other: other._idle_rank)
        if idle._idle_rank != BUSY:
            idle._end()
        else:
            self._is_surplus = True

    @classmethod
    def _sweep_later(cls, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(cls.limits.sweep_seconds, cls._sweep, state, loop)

    @classmethod
    def _sweep(cls, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        # A connection that ends leaves the set.
        for connection in list(state.connections):
            if isinstance(connection, LimitedProtocol):
                try:
                    connection._expire(now)
                except Exception:
                    # No connection may keep the sweep from all others.
                    log.exception("a connection could not be ended, and is cut off")
                    connection.transport.abort()
        if state.connections:
            cls._sweep_later(state, loop)
        else:
            cls._swept.discard(state)

    def _expire(self, now: float) -> None:
        if now > self._answer_deadline:
            self.transport.abort()
        elif now > self._deadline:
            if self.transport.is_closing():
                self.transport.abort()
            elif self._idle_rank != BUSY:
                self._end()
            else:
                self._refuse(refused(HTTPStatus.REQUEST_TIMEOUT))


class StopParsingError(Exception):
    """Makes the parser leave the rest of what it was given."""
