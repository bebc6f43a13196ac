"""One packet an answer: what is written in one turn of the event loop leaves together."""

import asyncio
from collections.abc import Callable
from typing import Any

SMALL = 16 * 1024


class CoalescingTransport:
    """`transport` as it is, but for writes and for closing.

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
