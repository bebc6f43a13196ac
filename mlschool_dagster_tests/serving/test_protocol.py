"""Whoever sends too much, too slowly or nothing at all loses the connection; all others keep it."""

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import ClassVar

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mlschool_dagster.serving.protocol import LimitedProtocol, Limits
from mlschool_dagster.serving.responses import OPEN_PATHS
from mlschool_dagster.serving.server_config import OVERFLOW
from mlschool_dagster_tests.serving.server import LIMITS
from mlschool_dagster_tests.serving.web_server import (
    TIMEOUT,
    answer_of,
    connect,
    serving,
    wait_for,
)

QUICK = 0.5
"""The time limit that a test waits for."""


class ShortTimeouts(LimitedProtocol):
    limits = replace(
        LIMITS,
        header_bytes=1000,
        request_bytes=10**6,
        header_seconds=QUICK,
        body_seconds=QUICK * 2,
        answer_seconds=QUICK,
        sweep_seconds=QUICK / 10,
        preconnect_seconds=QUICK,
    )


class SlowTimeouts(LimitedProtocol):
    limits = replace(
        LIMITS,
        header_bytes=1000,
        request_bytes=10**6,
        header_seconds=TIMEOUT,
        body_seconds=TIMEOUT,
        answer_seconds=TIMEOUT,
        sweep_seconds=QUICK / 10,
        discarded_bytes=2 * 10**7,
    )


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body that it was sent, or with many bytes where that is asked for."""
    if scope["path"] == "/failing":
        raise ValueError
    if scope["path"] == "/blocking":
        time.sleep(QUICK)
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/large":
        body = bytes(50_000_000)
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def short_timeouts() -> Iterator[uvicorn.Server]:
    with serving(ShortTimeouts, echo) as server:
        yield server


@pytest.fixture(scope="module")
def slow_timeouts() -> Iterator[uvicorn.Server]:
    with serving(SlowTimeouts, echo) as server:
        yield server


def trickle(connection: socket.socket, data: bytes, pause: float) -> None:
    """Send `data` byte by byte for as long as the server listens."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)
    except (BrokenPipeError, ConnectionResetError):
        pass


def send_as_far_as_possible(connection: socket.socket, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


HEAD = b"POST / HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 5\r\n"
REQUEST = HEAD + b"\r\nhello"


@pytest.mark.parametrize(
    "begun",
    [b"P", HEAD, REQUEST + HEAD, HEAD + b"X-Slow: ", HEAD + b"\r\n", HEAD + b"\r\nhel"],
)
def test_a_request_that_stops_halfway_is_refused_and_closed(
    short_timeouts: uvicorn.Server, begun: bytes
) -> None:
    with connect(short_timeouts) as connection:
        connection.sendall(begun)
        answer = answer_of(connection)
    assert b"HTTP/1.1 408 Request Timeout\r\n" in answer
    assert b"connection: close" in answer
    assert answer.endswith(b'{"error":"Request Timeout.","faults":[]}')
    assert answer.count(b"200 OK") == begun.count(b"hello")


@pytest.mark.parametrize("before", [b"", REQUEST])
@pytest.mark.parametrize("slow", [b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000, b"\r\n" * 5_000])
def test_a_trickle_of_headers_gains_no_time(
    short_timeouts: uvicorn.Server, before: bytes, slow: bytes
) -> None:
    with connect(short_timeouts) as connection:
        connection.sendall(before)
        started = time.monotonic()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(trickle, connection, slow, QUICK / 20)
            answer_of(connection)
        assert QUICK * 0.9 < time.monotonic() - started < TIMEOUT / 2


def test_a_trickle_of_the_body_has_more_time_but_not_for_ever(
    short_timeouts: uvicorn.Server,
) -> None:
    with connect(short_timeouts) as connection:
        started = time.monotonic()
        connection.sendall(b"POST / HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 9999\r\n\r\n")
        with ThreadPoolExecutor(1) as threads:
            threads.submit(trickle, connection, b"x" * 9999, QUICK / 20)
            assert b" 408 " in answer_of(connection)
        assert QUICK * 1.9 < time.monotonic() - started < TIMEOUT / 2


def test_a_connection_on_which_nothing_is_said_is_closed_without_a_word(
    short_timeouts: uvicorn.Server,
) -> None:
    with connect(short_timeouts) as connection:
        assert answer_of(connection) == b""


def test_a_client_that_does_not_take_its_answer_is_let_go(short_timeouts: uvicorn.Server) -> None:
    before = len(short_timeouts.server_state.connections)
    with connect(short_timeouts) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: endpoint\r\n\r\n")
        wait_for(lambda: len(short_timeouts.server_state.connections) > before)
        wait_for(lambda: len(short_timeouts.server_state.connections) <= before)
        assert len(answer_of(connection)) < 50_000_000


def test_an_idle_connection_stays_open_between_requests(short_timeouts: uvicorn.Server) -> None:
    with connect(short_timeouts) as connection:
        for _ in range(3):
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"hello"):
                answer += connection.recv(65536)
            # Longer than any limit on a request.
            time.sleep(QUICK * 3)


LARGE_HEADERS = [
    b"GET /" + b"x" * 1100 + b" HTTP/1.1\r\n\r\n",
    HEAD + b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(150)) + b"\r\nhello",
]


@pytest.mark.parametrize("pause", [0.0, 0.001])
@pytest.mark.parametrize("large", LARGE_HEADERS)
def test_headers_that_are_too_large_are_refused(
    slow_timeouts: uvicorn.Server, large: bytes, pause: float
) -> None:
    with connect(slow_timeouts) as connection:
        if pause:
            trickle(connection, large, pause)
        else:
            connection.sendall(large)
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


@pytest.mark.parametrize("large", LARGE_HEADERS)
def test_headers_that_are_too_large_are_refused_behind_another_request(
    slow_timeouts: uvicorn.Server, large: bytes
) -> None:
    with connect(slow_timeouts) as connection:
        connection.sendall(REQUEST + large + REQUEST)
        assert answer_of(connection).count(b"hello") <= 1


def test_a_large_body_is_no_large_header(slow_timeouts: uvicorn.Server) -> None:
    body = b"x" * 300_000
    request = b"POST / HTTP/1.1\r\nHost: endpoint\r\nContent-Length: %d\r\n\r\n%s"
    last = b"GET / HTTP/1.1\r\nHost: endpoint\r\nConnection: close\r\n\r\n"
    with connect(slow_timeouts) as connection:
        connection.sendall((request % (len(body), body)) * 3 + last)
        answer = answer_of(connection)
    assert answer.count(b"200 OK") == 4
    assert answer.count(b"x") == 3 * len(body)


CHUNKED = b"POST / HTTP/1.1\r\nHost: endpoint\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("endless", "status"),
    [
        (b"x: y\r\n" * 10_000, b"431 Request Header Fields Too Large"),
        (b"x: " + b"y" * 2_000_000, b"413 "),
    ],
)
def test_trailers_are_bounded_like_headers(
    slow_timeouts: uvicorn.Server, endless: bytes, status: bytes
) -> None:
    with connect(slow_timeouts) as connection:
        connection.sendall(CHUNKED + b"0\r\n")
        with ThreadPoolExecutor(1) as threads:
            threads.submit(send_as_far_as_possible, connection, endless)
            assert answer_of(connection).startswith(b"HTTP/1.1 " + status)


def test_an_endless_body_is_refused_however_it_is_cut(slow_timeouts: uvicorn.Server) -> None:
    for chunk in (b"1;" + b"x" * 5000 + b"\r\nx\r\n", b"1\r\nx\r\n"):
        with connect(slow_timeouts) as connection:
            connection.sendall(CHUNKED)
            with ThreadPoolExecutor(1) as threads:
                threads.submit(
                    send_as_far_as_possible, connection, chunk * (2_000_000 // len(chunk))
                )
                assert answer_of(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"HELO\r\n\r\n", HEAD + b"Content-Length: 6\r\n\r\n"]
)
def test_what_is_no_http_is_refused(slow_timeouts: uvicorn.Server, garbage: bytes) -> None:
    with connect(slow_timeouts) as connection:
        connection.sendall(garbage)
        assert answer_of(connection).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_hundreds_of_slow_clients_do_not_keep_others_from_their_answers(
    short_timeouts: uvicorn.Server,
) -> None:
    slow = [connect(short_timeouts) for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(b"POST / HTTP/1.1\r\nX-Slow: ")
        with connect(short_timeouts) as quick:
            quick.sendall(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
            assert answer_of(quick).endswith(b"hello")
        for connection in slow:
            assert b" 408 " in answer_of(connection)
    finally:
        for connection in slow:
            connection.close()
    wait_for(lambda: not short_timeouts.server_state.connections)


class Crowded(LimitedProtocol):
    limits = Limits(
        header_seconds=TIMEOUT,
        sweep_seconds=QUICK / 10,
        keep_alive_seconds=TIMEOUT,
        preconnect_seconds=TIMEOUT,
        connections=20,
    )


@pytest.fixture
def crowded() -> Iterator[uvicorn.Server]:
    with serving(Crowded, echo) as server:
        yield server


PING = b"GET /ping HTTP/1.1\r\nHost: endpoint\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("first", [b"", REQUEST], ids=["preconnected", "kept alive"])
def test_idle_connections_make_room_for_others_the_longest_idle_first(
    crowded: uvicorn.Server, first: bytes
) -> None:
    with ExitStack() as stack:
        idle: list[socket.socket] = []
        for _ in range(20):
            connection = stack.enter_context(connect(crowded))
            connection.sendall(first)
            wait_for(lambda: len(crowded.server_state.connections) == len(idle) + 1)
            assert not first or connection.recv(65536).endswith(b"hello")
            idle.append(connection)
        for _ in range(5):
            with connect(crowded) as another:
                another.sendall(REQUEST)
                assert another.recv(65536).endswith(b"hello")
        assert answer_of(idle[0]) == b""
        idle[-1].sendall(REQUEST)
        assert idle[-1].recv(65536).endswith(b"hello")


def test_connections_of_the_same_moment_make_room_in_their_order(crowded: uvicorn.Server) -> None:
    with ExitStack() as stack:
        with connect(crowded) as blocking:
            blocking.sendall(PING.replace(b"/ping", b"/blocking"))
            # They wait for the event loop, and all become idle in one turn of it.
            idle = [stack.enter_context(connect(crowded)) for _ in range(19)]
            answer_of(blocking)
        idle.append(stack.enter_context(connect(crowded)))
        wait_for(lambda: len(crowded.server_state.connections) == 20)
        for longest_idle in idle[:5]:
            another = stack.enter_context(connect(crowded))
            another.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
            assert b" 100 " in another.recv(65536)
            assert answer_of(longest_idle) == b""
        for connection in idle[5:]:
            connection.sendall(REQUEST)
            assert connection.recv(65536).endswith(b"hello")


class Faulty(LimitedProtocol):
    """Fails to end the connection that becomes idle first."""

    limits = replace(Crowded.limits, preconnect_seconds=QUICK)
    failures: ClassVar[list[LimitedProtocol]] = []

    def _expire(self, now: float) -> None:
        self.failures[:] = self.failures or [self]
        if self in self.failures:
            raise ValueError
        super()._expire(now)


def test_a_connection_that_cannot_be_ended_keeps_no_other_from_its_end() -> None:
    with serving(Faulty, echo) as server, connect(server) as faulty:
        assert answer_of(faulty) == b""
        with connect(server) as another:
            assert answer_of(another) == b""


def test_where_all_are_busy_another_is_asked_to_retry_and_a_load_balancer_is_answered(
    crowded: uvicorn.Server,
) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            waiting = stack.enter_context(connect(crowded))
            waiting.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
            assert b" 100 " in waiting.recv(65536)
        with connect(crowded) as another:
            another.sendall(REQUEST)
            answer = answer_of(another)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert b'{"error":' in answer
        for path in OPEN_PATHS:
            with connect(crowded) as balancer:
                balancer.sendall(PING.replace(b"/ping", path.encode()))
                assert b"200 OK" in answer_of(balancer)


def test_a_flood_of_connections_is_cut_off(crowded: uvicorn.Server) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            with suppress(ConnectionError):
                stack.enter_context(connect(crowded)).sendall(HEAD)
        wait_for(lambda: len(crowded.server_state.connections) > 20)
        assert len(crowded.server_state.connections) <= 20 * (OVERFLOW + 1)


@pytest.mark.parametrize(
    "length", [b"Content-Length: 10000000\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_who_is_refused_while_sending_gets_the_answer_and_no_reset(
    slow_timeouts: uvicorn.Server, length: bytes
) -> None:
    body = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with connect(slow_timeouts) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: endpoint\r\n" + length + b"\r\n")
        for _ in range(10_000_000 // len(body)):
            connection.sendall(body)
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert connection.recv(65536) == b""


def test_who_never_stops_sending_is_cut_off_in_the_end(slow_timeouts: uvicorn.Server) -> None:
    with connect(slow_timeouts) as connection, pytest.raises(ConnectionError):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 10\r\n")
        while True:
            connection.sendall(b"x: y\r\n" * 10_000)


def test_requests_behind_each_other_are_answered_in_order(slow_timeouts: uvicorn.Server) -> None:
    requests = [HEAD.replace(b"5", b"1") + b"\r\n%d" % number for number in range(10)]
    with connect(slow_timeouts) as connection:
        connection.sendall(b"".join(requests))
        connection.shutdown(socket.SHUT_WR)
        bodies = re.findall(rb"\r\n\r\n(\d)", answer_of(connection))
    assert bodies == [b"%d" % number for number in range(10)]


def test_a_flood_of_requests_behind_each_other_is_cut_off_behind_an_answer(
    slow_timeouts: uvicorn.Server,
) -> None:
    with connect(slow_timeouts) as connection:
        connection.sendall(REQUEST * 500)
        answer = answer_of(connection)
    assert answer.count(b"200 OK") == answer.count(b"hello") < 500
    assert answer.count(b"connection: close") == 1


def test_clients_of_http_1_0_may_keep_their_connection(slow_timeouts: uvicorn.Server) -> None:
    request = REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0").replace(
        b"Host", b"Connection: Keep-Alive\r\nHost"
    )
    with connect(slow_timeouts) as connection:
        for _ in range(3):
            connection.sendall(request)
            answer = connection.recv(65536)
            assert b"\r\nconnection: keep-alive\r\n" in answer
            assert answer.endswith(b"hello")


def test_an_answer_before_the_body_is_the_last_one(slow_timeouts: uvicorn.Server) -> None:
    head = HEAD.replace(b"POST /", b"POST /early") + b"Expect: 100-continue\r\n\r\n"
    with connect(slow_timeouts) as connection:
        # The client may send the body or leave it, and take what it sends for another request.
        connection.sendall(head)
        answer = connection.recv(65536)
        connection.sendall(REQUEST)
        answer += answer_of(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer


def test_a_failure_of_the_application_is_reported_in_json(slow_timeouts: uvicorn.Server) -> None:
    with connect(slow_timeouts) as connection:
        connection.sendall(b"GET /failing HTTP/1.1\r\nHost: endpoint\r\n\r\n")
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b'{"error":"The server failed to answer.","faults":[]}')
