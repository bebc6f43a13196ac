"""Memory of requests: bounded for each, and for all together from the first byte to the last.

A request holds its body, then its rows and what is predicted on them, then its answer until the
client has taken it. All three count, in one sum.
"""

from typing import Protocol

from starlette.types import Message, Receive

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.serving.validation_errors import InvalidRequestError

MAX_BODY = 6 * 1024 * 1024
MAX_HELD = 96 * 1024 * 1024
LARGE_BODY = 64 * 1024
"""Bodies above this are worked on beside the event loop, so that small requests need not wait."""
FEW_ROWS = 8
"""So few rows are not counted: connections are bounded, too."""


class TooBusyError(Exception):
    """Requests fill the memory set aside for them; the caller may try again."""


class Holder(Protocol):
    """A request, with the bytes that it holds now."""

    held: int


class MemoryBudget:
    """Counts what requests hold; together they may have `MAX_HELD` bytes."""

    def __init__(self) -> None:
        self._held = 0

    def hold(self, holder: Holder, size: int) -> None:
        """Let `holder` have `size` bytes instead of those that it holds now.

        Raises:
            TooBusyError: it would hold more than now, and the budget is spent.
        """
        held = self._held + size - holder.held
        if held > MAX_HELD and size > holder.held:
            raise TooBusyError
        self._held, holder.held = held, size


def bytes_of_rows(rows: int, spec: DataSpec) -> int:
    """About what `rows` of `spec` hold at most, parsed, predicted, captured and answered.

    Measured with CPython 3.11: an object a cell, and thrice its text, for the captures and the
    answer.
    """
    return rows * (1000 + 250 * len(spec.columns) + 200 * len(spec.target.classes))


async def read_body(
    first: Message, receive: Receive, memory: MemoryBudget, holder: Holder
) -> bytes:
    """The body that begins with the message `first`; its bytes count as held by `holder`.

    A small body is always let in.

    Raises:
        InvalidRequestError: it is too large (413) or is cut off (400).
        TooBusyError: the budget is spent.
    """
    pieces: list[bytes] = []
    size = 0
    message = first
    while True:
        if message["type"] == "http.disconnect":
            raise InvalidRequestError(400, "The request ended before its body did.")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY:
            raise too_large()
        if size > LARGE_BODY:
            memory.hold(holder, size)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        message = await receive()


def too_large() -> InvalidRequestError:
    """The refusal of a body above `MAX_BODY`."""
    return InvalidRequestError(413, f"The body is larger than {MAX_BODY // 1024**2} MB; split it.")
