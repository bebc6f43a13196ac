"""Reading a request's body, whatever is sent: each bounded, and all large ones together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Message, Receive

from mlschool_dagster.serving.validation import InvalidRequestError

MAX_BODY = 6 * 1024 * 1024
MAX_HELD = 64 * 1024 * 1024
LARGE_BODY = 64 * 1024
"""Bodies above this are worked on beside the event loop, one at a time, so that small requests need
not wait."""


class TooBusyError(Exception):
    """Large bodies fill the memory set aside for them; the caller may try again."""


class Bodies:
    """Reads bodies that come in several pieces.

    One may have `MAX_BODY` bytes. While those in memory have more than `MAX_HELD` together, no
    large one is let in.
    """

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def whole(self, first: Message, receive: Receive) -> AsyncIterator[bytes]:
        """The body that begins with the message `first`; its memory counts until the block ends.

        Raises:
            InvalidRequestError: it is too large (413) or is cut off (400).
            TooBusyError: there is no room for it now.
        """
        pieces: list[bytes] = []
        size = 0
        message = first
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise InvalidRequestError(400, "The request ended before its body did.")
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                self._held += len(pieces[-1])
                if size > MAX_BODY:
                    raise too_large()
                if size > LARGE_BODY and self._held > MAX_HELD:
                    raise TooBusyError
                if not message.get("more_body", False):
                    break
                message = await receive()
            yield b"".join(pieces)
        finally:
            self._held -= size


def too_large() -> InvalidRequestError:
    """The refusal of a body above `MAX_BODY`."""
    return InvalidRequestError(413, f"The body is larger than {MAX_BODY // 1024**2} MB; split it.")
