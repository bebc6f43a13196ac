"""Group commit: each request learns what became of its captures; nothing that waits is lost."""

import asyncio
from pathlib import Path

import pytest

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.serving.capturing import CaptureFailedError, CaptureWriter
from mlschool_dagster_tests.capture.samples import WINDOW, capture


def append_all(uri: str, requests: list[list[Capture]]) -> list[frozenset[str]]:
    async def work() -> list[frozenset[str]]:
        writer = CaptureWriter(open_store(uri))
        try:
            return await asyncio.gather(*(writer.append(captures) for captures in requests))
        finally:
            await writer.close()

    return asyncio.run(work())


def kept(uri: str) -> list[str]:
    store = open_store(uri)
    events = list(store.read(WINDOW)["event_id"])
    store.close()
    return events


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/captures.db"


def test_many_requests_at_once_are_kept_in_order(uri: str) -> None:
    requests = [[capture(f"{i}-0"), capture(f"{i}-1")] for i in range(500)]
    assert set(append_all(uri, requests)) == {frozenset()}
    assert kept(uri) == [c.event_id for captures in requests for c in captures]


def test_the_conflict_of_one_request_refuses_no_other(uri: str) -> None:
    requests = [
        [capture("a")],
        [capture("b"), capture("a", mass=None)],
        [capture("c")],
        [capture("a")],
    ]
    assert append_all(uri, requests) == [frozenset(), {"a"}, frozenset(), frozenset()]
    assert kept(uri) == ["a", "c"]


def test_what_still_waits_is_written_before_the_end(uri: str) -> None:
    async def work() -> None:
        writer = CaptureWriter(open_store(uri))
        waiting = [asyncio.ensure_future(writer.append([capture(str(i))])) for i in range(100)]
        await asyncio.sleep(0)
        await writer.close()
        await asyncio.gather(*waiting)
        assert writer.written == 100

    asyncio.run(work())
    assert len(kept(uri)) == 100


def test_a_store_that_fails_is_told_to_everyone_who_waits(uri: str) -> None:
    async def work() -> list[BaseException | frozenset[str]]:
        store = open_store(uri)
        writer = CaptureWriter(store)
        store.close()
        outcomes = await asyncio.gather(
            *(writer.append([capture(str(i))]) for i in range(5)), return_exceptions=True
        )
        await writer.close()
        return outcomes

    outcomes = asyncio.run(work())
    assert [type(outcome) for outcome in outcomes] == [CaptureFailedError] * 5
    assert kept(uri) == []
