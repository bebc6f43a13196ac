"""No request is read from the body of another one, whatever the sender says about its length.

Each entry of the table is what a client or a proxy in front may send, byte for byte. Wherever two
servers could disagree about where a request ends, the answer is one refusal, and the connection is
closed. To try another input, add an entry.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from mlschool_dagster.serving.protocol import LimitedProtocol
from mlschool_dagster_tests.serving.server import LIMITS
from mlschool_dagster_tests.serving.web_server import answer_of, connect, serving

SMUGGLED = b"POST /smuggled HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 0\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)
CHUNK = b"%x\r\n%s\r\n" % (len(SMUGGLED), SMUGGLED)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"
ENDING = b"Connection: close\r\n"


class Wire(LimitedProtocol):
    limits = replace(LIMITS, header_seconds=2.0, body_seconds=2.0, sweep_seconds=0.05)


@dataclass
class Application:
    """Answers each request with its own body, and remembers what reached it."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.requests.append((scope["path"], body))
        self.headers.append(list(scope["headers"]))
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def application() -> Application:
    return Application()


@pytest.fixture(scope="module")
def server(application: Application) -> Iterator[uvicorn.Server]:
    with serving(Wire, application) as server:
        yield server


@pytest.fixture(autouse=True)
def forget(application: Application) -> None:
    application.requests.clear()
    application.headers.clear()


def post(*fields: bytes, host: bytes = b"Host: endpoint\r\n", line: bytes = b"POST /") -> bytes:
    return b"%s HTTP/1.1\r\n%s%s\r\n" % (line, host, b"".join(fields))


def answer_to(
    server: uvicorn.Server, data: bytes, piecewise: bool = False, ends: bool = False
) -> bytes:
    """All that is answered to `data`, sent as a whole or a byte a packet, until the server closes.

    With `ends`, the client closes its half of the connection once it has sent all.
    """
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The server may close before all is sent.
        with suppress(ConnectionError):
            for piece in (bytes([byte]) for byte in data) if piecewise else (data,):
                connection.sendall(piece)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        return answer_of(connection)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


REFUSED = {
    # Two lengths.
    "length, chunked": post(LENGTH, CHUNKED) + LAST + SMUGGLED,
    "chunked, length": post(CHUNKED, LENGTH) + LAST + SMUGGLED,
    "no length, chunked": post(b"Content-Length: 0\r\n", CHUNKED) + CHUNK + LAST,
    "two lengths": post(b"Content-Length: 0\r\n", LENGTH) + SMUGGLED,
    "the same length twice": post(LENGTH, LENGTH) + SMUGGLED,
    "a list of lengths": post(b"Content-Length: 0, %d\r\n" % len(SMUGGLED)) + SMUGGLED,
    "a list of equal lengths": post(b"Content-Length: 5, 5\r\n") + b"hello" + SMUGGLED,
    # Lengths that are no numbers.
    "negative": post(b"Content-Length: -1\r\n") + SMUGGLED,
    "signed": post(b"Content-Length: +5\r\n") + b"hello" + SMUGGLED,
    "hexadecimal": post(b"Content-Length: 0x5\r\n") + b"hello" + SMUGGLED,
    "underscore": post(b"Content-Length: 1_0\r\n") + b"hello" + SMUGGLED,
    "fraction": post(b"Content-Length: 5.0\r\n") + b"hello" + SMUGGLED,
    "space within": post(b"Content-Length: 1 0\r\n") + b"hello" + SMUGGLED,
    "overflow": post(b"Content-Length: 18446744073709551621\r\n") + b"hello" + SMUGGLED,
    "empty": post(b"Content-Length: \r\n") + SMUGGLED,
    "arabic digits": post("Content-Length: \u0665\r\n".encode()) + b"hello" + SMUGGLED,
    # Transfer encodings.
    "encoded twice": post(b"Transfer-Encoding: chunked, chunked\r\n") + CHUNK + LAST,
    "two encodings": post(CHUNKED, CHUNKED) + CHUNK + LAST,
    "identity": post(b"Transfer-Encoding: identity\r\n", LENGTH) + SMUGGLED,
    "identity alone": post(b"Transfer-Encoding: identity\r\n") + SMUGGLED,
    "gzip": post(b"Transfer-Encoding: gzip, chunked\r\n") + CHUNK + LAST,
    "chunked, gzip": post(b"Transfer-Encoding: chunked, gzip\r\n") + CHUNK + LAST,
    "xchunked": post(b"Transfer-Encoding: xchunked\r\n") + CHUNK + LAST,
    "quoted": post(b'Transfer-Encoding: "chunked"\r\n') + CHUNK + LAST,
    "chunked with a parameter": post(b"Transfer-Encoding: chunked;q=1\r\n") + CHUNK + LAST,
    "vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n") + CHUNK + LAST,
    "no encoding": post(b"Transfer-Encoding: \r\n", LENGTH) + SMUGGLED,
    "space before the colon": post(b"Transfer-Encoding : chunked\r\n") + CHUNK + LAST,
    "folded": post(b"Transfer-Encoding:\r\n chunked\r\n") + CHUNK + LAST,
    "folded length": post(b"Content-Length: 0\r\n %d\r\n" % len(SMUGGLED)) + SMUGGLED,
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n" + CHUNK + LAST,
    # Chunks.
    "a chunk without a size": post(CHUNKED) + b"\r\n" + SMUGGLED,
    "a negative chunk": post(CHUNKED) + b"-1\r\n" + SMUGGLED,
    "a chunk with a prefix": post(CHUNKED) + b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk with an underscore": post(CHUNKED) + b"1_0\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "an overflowing chunk": post(CHUNKED) + b"10000000000000005\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk longer than its size": post(CHUNKED) + b"3\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk without its end": post(CHUNKED) + b"5\r\nhello0\r\n\r\n" + SMUGGLED,
    "a bare LF after a size": post(CHUNKED) + b"5\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a bare LF after a chunk": post(CHUNKED) + b"5\r\nhello\n0\r\n\r\n" + SMUGGLED,
    "a bare LF after the last size": post(CHUNKED) + b"5\r\nhello\r\n0\n\n" + SMUGGLED,
    "a bare CR after a size": post(CHUNKED) + b"5\rhello\r\n0\r\n\r\n" + SMUGGLED,
    "a space before a size": post(CHUNKED) + b" 5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a space after a size": post(CHUNKED) + b"5 \r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "an LF in an extension": post(CHUNKED) + b"5;a\nb\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a NUL in an extension": post(CHUNKED) + b"5;\0\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a trailer without a name": post(CHUNKED) + b"5\r\nhello\r\n0\r\n: x\r\n\r\n" + SMUGGLED,
    "a folded trailer": post(CHUNKED) + b"0\r\nA: b\r\n c\r\n\r\n" + SMUGGLED,
    "a length as trailer": post(CHUNKED) + b"0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
    "an encoding as trailer": post(CHUNKED) + b"0\r\n" + CHUNKED + b"\r\n" + SMUGGLED,
    # Header fields.
    "a space in a name": post(b"X Y: z\r\n", LENGTH) + SMUGGLED,
    "a NUL in a name": post(b"X\0Y: z\r\n", LENGTH) + SMUGGLED,
    "a NUL in a value": post(b"X: y\0z\r\n", LENGTH) + SMUGGLED,
    "a CR in a value": post(b"X: y\rz\r\n", LENGTH) + SMUGGLED,
    "a bare LF after a field": post(b"X: y\n", LENGTH) + SMUGGLED,
    "a field without a colon": post(b"X\r\n", LENGTH) + SMUGGLED,
    "a field without a name": post(b": y\r\n", LENGTH) + SMUGGLED,
    "a space before the first field": post(b"", host=b" Host: endpoint\r\n") + SMUGGLED,
    "a folded field": post(b"X: y\r\n\tz\r\n", LENGTH) + SMUGGLED,
    "bare LFs": b"POST / HTTP/1.1\nHost: endpoint\n" + LENGTH + b"\n" + SMUGGLED,
    "two authorizations": post(b"Authorization: a\r\n", b"Authorization: b\r\n") + SMUGGLED,
    "two request ids": post(b"X-Request-Id: a\r\n", b"x-request-id: b\r\n") + SMUGGLED,
    "another expectation": post(b"Expect: 200-ok\r\n", LENGTH) + SMUGGLED,
    # Hosts.
    "no host": post(LENGTH, host=b"") + SMUGGLED,
    "two hosts": post(LENGTH, host=b"Host: endpoint\r\nHost: other\r\n") + SMUGGLED,
    "the same host twice": post(LENGTH, host=b"Host: endpoint\r\nHost: endpoint\r\n") + SMUGGLED,
    "a list of hosts": post(LENGTH, host=b"Host: endpoint, other\r\n") + SMUGGLED,
    "a host with a path": post(LENGTH, host=b"Host: endpoint/x\r\n") + SMUGGLED,
    "a host with a user": post(LENGTH, host=b"Host: a@endpoint\r\n") + SMUGGLED,
    "a host with a space": post(LENGTH, host=b"Host: end point\r\n") + SMUGGLED,
    # Targets and versions.
    "another server": post(LENGTH, line=b"POST http://other/") + SMUGGLED,
    "another scheme": post(LENGTH, line=b"POST ftp://endpoint/") + SMUGGLED,
    "a user in the target": post(LENGTH, line=b"POST http://a@endpoint/") + SMUGGLED,
    "a tunnel": post(line=b"CONNECT endpoint:80") + SMUGGLED,
    "a target without a path": post(LENGTH, line=b"POST x") + SMUGGLED,
    "a space in the target": post(LENGTH, line=b"POST /x y") + SMUGGLED,
    "a NUL in the target": post(LENGTH, line=b"POST /\0") + SMUGGLED,
    "a fragment": post(LENGTH, line=b"POST /#x") + SMUGGLED,
    "an unknown method": post(LENGTH, line=b"SMUGGLE /") + SMUGGLED,
    "a method in small letters": post(LENGTH, line=b"post /") + SMUGGLED,
    "no version": b"POST /\r\n\r\n" + SMUGGLED,
    "HTTP/0.9": b"POST / HTTP/0.9\r\nHost: endpoint\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "HTTP/1.2": b"POST / HTTP/1.2\r\nHost: endpoint\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "HTTP/2.0": b"POST / HTTP/2.0\r\nHost: endpoint\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "HTTP/11.1": b"POST / HTTP/11.1\r\nHost: endpoint\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "another protocol": b"POST / SIP/2.0\r\nHost: endpoint\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED,
}
"""What is answered by one refusal."""

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
H2C = b"Upgrade: h2c\r\n"
EXTENDED = CHUNK.replace(b"\r\n", b";a=b\r\n", 1)
TRAILER = b"0\r\nHost: other\r\nX-Request-Id: trailer\r\n\r\n"
UPGRADE_TRAILER = b"0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
SINGLE_BYTES = b"".join(b"1\r\n%c\r\n" % byte for byte in SMUGGLED)
WEBSOCKET = b"Connection: upgrade\r\nUpgrade: websocket\r\n"

UNDERSTOOD = {
    "a length": post(LENGTH) + SMUGGLED,
    "chunks": post(CHUNKED) + CHUNK + LAST,
    "chunks in capitals": post(b"transfer-encoding:CHUNKED\r\n") + CHUNK + LAST,
    "chunks with an extension": post(CHUNKED) + EXTENDED + LAST,
    "chunks of one byte": post(CHUNKED) + SINGLE_BYTES + LAST,
    "chunks with a trailer": post(CHUNKED) + CHUNK + TRAILER,
    "chunks with an upgrade as trailer": post(CHUNKED) + CHUNK + UPGRADE_TRAILER,
    "spaces around a length": post(LENGTH.replace(b" ", b" \t")) + SMUGGLED,
    "leading zeros": post(LENGTH.replace(b" ", b" 000")) + SMUGGLED,
    "an upgrade to HTTP/2": post(UPGRADE, H2C, LENGTH) + SMUGGLED,
    "an upgrade before the length": post(LENGTH, H2C, UPGRADE) + SMUGGLED,
    "an upgrade with chunks": post(UPGRADE, H2C, CHUNKED) + CHUNK + LAST,
    "an upgrade with a trailer": post(UPGRADE, H2C, CHUNKED) + CHUNK + TRAILER,
    "an upgrade to TLS": post(b"Connection: upgrade\r\nUpgrade: TLS/1.2\r\n", LENGTH) + SMUGGLED,
    "an upgrade to WebSocket": post(WEBSOCKET, LENGTH) + SMUGGLED,
    "two upgrades": post(UPGRADE, H2C, b"Upgrade: websocket\r\n", LENGTH) + SMUGGLED,
    "an upgrade that no connection names": post(H2C, LENGTH) + SMUGGLED,
    "an upgrade of HTTP/1.0": b"POST / HTTP/1.0\r\n" + UPGRADE + H2C + LENGTH + b"\r\n" + SMUGGLED,
    "an upgrade that waits": post(UPGRADE, H2C, b"Expect: 100-continue\r\n", LENGTH) + SMUGGLED,
    "an expectation": post(b"Expect: 100-Continue\r\n", LENGTH) + SMUGGLED,
    "an absolute target": post(LENGTH, line=b"POST http://endpoint") + SMUGGLED,
    "an empty line before": b"\r\n" + post(LENGTH) + SMUGGLED,
    "HTTP/1.0": b"POST / HTTP/1.0\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "HTTP/1.0 kept alive": b"POST / HTTP/1.0\r\nConnection: keep-alive\r\n"
    + LENGTH
    + b"\r\n"
    + SMUGGLED,
    "garbage behind the last one": post(LENGTH, ENDING) + SMUGGLED + b"\0garbage\r\n\r\n",
    "another request behind the last one": post(LENGTH, ENDING) + SMUGGLED * 2,
    "another request behind HTTP/1.0": b"POST / HTTP/1.0\r\n" + LENGTH + b"\r\n" + SMUGGLED * 2,
}
"""What is answered once, with the smuggled request as its body."""


@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused_once(
    server: uvicorn.Server, application: Application, name: str, piecewise: bool
) -> None:
    answer = answer_to(server, REFUSED[name], piecewise)
    assert statuses(answer) in ([400], [417], [501], [505])
    assert b"connection: close" in answer
    assert answer.endswith(b'"faults":[]}')
    assert application.requests == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_comes_before_it_is_answered_first(
    server: uvicorn.Server, application: Application, name: str
) -> None:
    answer = answer_to(server, post(b"Content-Length: 5\r\n") + b"hello" + REFUSED[name])
    assert statuses(answer)[0] == 200
    assert len(statuses(answer)) <= 2
    assert application.requests == [("/", b"hello")]


@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_is_clear_is_answered_and_its_body_is_its_body(
    server: uvicorn.Server, application: Application, name: str, piecewise: bool
) -> None:
    answer = answer_to(server, UNDERSTOOD[name], piecewise, ends=True)
    assert [status for status in statuses(answer) if status != 100] == [200]
    assert answer.endswith(SMUGGLED)
    assert application.requests == [("/", SMUGGLED)]
    assert (b"x-request-id", b"trailer") not in application.headers[0]


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_is_clear_leaves_the_connection_to_the_next_request(
    server: uvicorn.Server, application: Application, name: str
) -> None:
    following = post(b"Content-Length: 4\r\n", line=b"POST /next") + b"next"
    answer_to(server, UNDERSTOOD[name] + following, ends=True)
    may_follow = not ("HTTP/1.0" in name or "behind" in name) or "kept alive" in name
    next_ones = [("/next", b"next")] if may_follow else []
    assert application.requests == [("/", SMUGGLED), *next_ones]
    assert all((b"x-request-id", b"trailer") not in headers for headers in application.headers)


TRAILERS = st.lists(
    st.tuples(
        st.sampled_from([b"Authorization", b"X-Request-Id", b"Connection", b"Host", b"A"]),
        st.binary(max_size=9).map(lambda value: value.hex().encode()),
    ),
    max_size=4,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TRAILERS)
def test_no_trailer_becomes_a_header_of_this_request_or_the_next(
    server: uvicorn.Server, application: Application, trailers: list[tuple[bytes, bytes]]
) -> None:
    application.headers.clear()
    fields = b"".join(b"%s: %s\r\n" % trailer for trailer in trailers)
    following = post(b"Content-Length: 0\r\n", ENDING)
    answer_to(server, post(CHUNKED) + b"0\r\n" + fields + b"\r\n" + following)
    assert application.headers == [
        [(b"host", b"endpoint"), (b"transfer-encoding", b"chunked")],
        [(b"host", b"endpoint"), (b"content-length", b"0"), (b"connection", b"close")],
    ]
