"""Send responses in pieces, and the names and headers that several modules share."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.types import Send

Headers = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
PIECE = 32 * 1024
"""Bytes of an answer that are sent at a time."""
RETRY_LATER: Headers = ((b"retry-after", b"1"),)
CLOSE: Headers = ((b"connection", b"close"),)
COUNT_ANSWER = "count_answer"
"""Entry of the lifespan's state: a function that counts an answer, by its status, which is given
before a request reaches what it asks for."""
LIVENESS_PATH = "/live"
READINESS_PATH = "/ready"
OPEN_PATH = "/ping"
OPEN_PATHS = frozenset({OPEN_PATH, LIVENESS_PATH, READINESS_PATH})
"""Paths for load balancers and orchestrators, which have no token to present, and know the server
by its address. Alive is a process that answers at all; ready is one that serves a version."""
DOCS_PATH = "/docs"
DOCS_FOLDER = "/docs/"


async def send_json(send: Send, body: bytes, status: int = 200, headers: Headers = ()) -> None:
    """Send `body`, which is JSON already."""
    length = (b"content-length", b"%d" % len(body))
    await send_body(send, body, status, [JSON_TYPE, length, *headers])


async def send_body(send: Send, body: bytes, status: int, headers: Headers) -> None:
    """Send `body` as fast as the client takes it."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    # The server waits with each piece until the client has taken most of those before.
    for begin in range(0, max(len(body), 1), PIECE):
        end = begin + PIECE
        piece = {"body": body[begin:end], "more_body": end < len(body)}
        await send({"type": "http.response.body", **piece})


def error_body(message: str, faults: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """The JSON body of every refusal and failure: a sentence, and the faults if there are any."""
    return orjson.dumps({"error": message, "faults": faults})
