"""A server in this process for an application and a protocol, and plain sockets to talk to it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from mlschool_dagster.serving.protocol import LimitedProtocol

TIMEOUT = 20.0


@contextmanager
def serving(protocol: type[LimitedProtocol], application: Any) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(application, port=0, http=protocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server
    finally:
        server.should_exit = server.force_exit = True
        thread.join(TIMEOUT)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def connect(server: uvicorn.Server) -> socket.socket:
    address = server.servers[0].sockets[0].getsockname()
    return socket.create_connection(address, timeout=TIMEOUT)


def answer_of(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    received = []
    try:
        while piece := connection.recv(65536):
            received.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(received)
