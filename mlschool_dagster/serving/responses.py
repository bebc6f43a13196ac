"""Answers as JSON, sent with as little ceremony as HTTP allows."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.types import Send

Headers = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
RETRY_LATER: Headers = ((b"retry-after", b"1"),)
CLOSE: Headers = ((b"connection", b"close"),)
OPEN_PATH = "/ping"
"""What a load balancer asks, which has no token to present, and knows the server by its address."""


async def send_json(send: Send, body: bytes, status: int = 200, headers: Headers = ()) -> None:
    """Send `body`, which is JSON already."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {"type": "http.response.start", "status": status, "headers": [JSON_TYPE, length, *headers]}
    )
    await send({"type": "http.response.body", "body": body})


def error_body(message: str, faults: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """What every refusal and failure looks like: a sentence, and the faults where there are any."""
    return orjson.dumps({"error": message, "faults": faults})
