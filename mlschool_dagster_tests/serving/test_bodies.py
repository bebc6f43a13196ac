"""Bodies in several pieces: bounded each, and the large ones together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from mlschool_dagster.serving.bodies import LARGE_BODY, MAX_BODY, MAX_HELD, Bodies, TooBusyError
from mlschool_dagster.serving.validation import InvalidRequestError

SMALL = [b"a", b"b"]
LARGEST = [bytes(MAX_BODY)]


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


async def read(bodies: Bodies, content: Sequence[bytes]) -> bytes:
    async with bodies.whole(*pieces(content)) as body:
        return body


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
def test_a_body_is_the_sum_of_its_pieces(content: list[bytes]) -> None:
    assert asyncio.run(read(Bodies(), content)) == b"".join(content)


def test_one_byte_too_many_is_refused() -> None:
    assert len(asyncio.run(read(Bodies(), LARGEST))) == MAX_BODY
    with pytest.raises(InvalidRequestError) as refusal:
        asyncio.run(read(Bodies(), [*LARGEST, b"x"]))
    assert refusal.value.status == 413


def test_a_body_that_breaks_off_is_refused() -> None:
    first, receive = pieces(SMALL)

    async def work() -> None:
        await receive()
        async with Bodies().whole(first, receive):
            pass

    with pytest.raises(InvalidRequestError) as refusal:
        asyncio.run(work())
    assert refusal.value.status == 400


def test_large_bodies_need_room_and_small_ones_do_not() -> None:
    async def work() -> None:
        bodies = Bodies()
        async with AsyncExitStack() as held:
            for _ in range(MAX_HELD // MAX_BODY):
                await held.enter_async_context(bodies.whole(*pieces(LARGEST)))
            with pytest.raises(TooBusyError):
                await read(bodies, LARGEST)
            for _ in range(MAX_BODY // LARGE_BODY):
                largest_small = [bytes(LARGE_BODY // 2)] * 2
                await held.enter_async_context(bodies.whole(*pieces(largest_small)))
        assert len(await read(bodies, LARGEST)) == MAX_BODY

    asyncio.run(work())
