"""What requests hold in memory: bounded for each, and for all together until they are answered."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from mlschool_dagster.serving.request_body import (
    LARGE_BODY,
    MAX_BODY,
    MAX_HELD,
    MemoryBudget,
    TooBusyError,
    read_body,
)
from mlschool_dagster.serving.validation import InvalidRequestError

SMALL = [b"a", b"b"]
LARGEST = [bytes(MAX_BODY)]


@dataclass
class Request:
    held: int = 0


def pieces(content: Sequence[bytes]) -> tuple[Message, Callable[[], Awaitable[Message]]]:
    """The first message of a body, and how the others are received."""
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(content) - 1}
        for number, piece in enumerate(content)
    ]
    following = iter(messages[1:])

    async def receive() -> Message:
        return next(following, {"type": "http.disconnect"})

    return messages[0], receive


def read(content: Sequence[bytes], memory: MemoryBudget, request: Request) -> bytes:
    return asyncio.run(read_body(*pieces(content), memory, request))


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
def test_a_body_is_the_sum_of_its_pieces(content: list[bytes]) -> None:
    assert read(content, MemoryBudget(), Request()) == b"".join(content)


def test_one_byte_too_many_is_refused() -> None:
    assert len(read(LARGEST, MemoryBudget(), Request())) == MAX_BODY
    with pytest.raises(InvalidRequestError) as refusal:
        read([*LARGEST, b"x"], MemoryBudget(), Request())
    assert refusal.value.status == 413


def test_a_body_that_breaks_off_is_refused() -> None:
    first, receive = pieces(SMALL)

    async def work() -> None:
        await receive()
        await read_body(first, receive, MemoryBudget(), Request())

    with pytest.raises(InvalidRequestError) as refusal:
        asyncio.run(work())
    assert refusal.value.status == 400


def test_large_bodies_need_room_and_small_ones_do_not() -> None:
    memory = MemoryBudget()
    requests = [Request() for _ in range(MAX_HELD // MAX_BODY)]
    for request in requests:
        read(LARGEST, memory, request)
    with pytest.raises(TooBusyError):
        read(LARGEST, memory, Request())
    assert read([bytes(LARGE_BODY // 2)] * 2, memory, Request())
    memory.hold(requests[0], 0)
    assert read(LARGEST, memory, Request())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, MAX_HELD))))
def test_requests_never_hold_more_together_than_there_is(steps: list[tuple[int, int]]) -> None:
    memory, requests = MemoryBudget(), [Request() for _ in range(4)]
    for number, size in steps:
        request, before = requests[number], requests[number].held
        others = sum(other.held for other in requests) - before
        try:
            memory.hold(request, size)
        except TooBusyError:
            assert (request.held, others + size > MAX_HELD) == (before, True)
        assert sum(other.held for other in requests) <= MAX_HELD
