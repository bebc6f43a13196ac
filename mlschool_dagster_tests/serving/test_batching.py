"""Micro-batches: each request learns what became of it; nothing that waits is lost."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.sqlite import SqliteStore
from mlschool_dagster.capture.store import Appended, InvalidCaptureError, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving import batching
from mlschool_dagster.serving.batching import Batcher, CaptureFailedError, ConflictError, predict
from mlschool_dagster.serving.buffered_store import open_buffered_store
from mlschool_dagster.serving.desired_state import VersionFolder
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.serving.model_router import Version
from mlschool_dagster.serving.prediction_request import PredictionRequest
from mlschool_dagster.serving.validation import Accepted, Validator
from mlschool_dagster_tests.serving.store_outage import is_back, wait_until
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC, tiny_model

PLENTY = 1024**2


def version(number: int) -> Version:
    model = tiny_model(number)
    return Version(VersionFolder(str(number), Path()), model, Validator(SPEC), utc_now())


FIRST, SECOND = version(1), version(2)


def make_request(
    *event_ids: str,
    mass: float | None = 5800,
    by: Version = FIRST,
    shadow: Version | None = None,
    is_captured: bool = True,
) -> PredictionRequest:
    rows = [{**ROW, "body_mass_g": mass} for _ in event_ids]
    return PredictionRequest(
        role=Role.PRIMARY,
        version=by,
        shadow=shadow,
        accepted=Accepted(rows, range(len(rows)), len(rows), [], []),
        event_ids=event_ids,
        is_captured=is_captured,
        sampling_share=1.0,
    )


def submit_all(home: Path, requests: Sequence[PredictionRequest]) -> list[Any]:
    """What became of requests that are asked at once: None, or the error."""

    async def work() -> list[Any]:
        store = open_buffered_store(uri(home), home / "spill", PLENTY)
        batcher = Batcher(store, "penguins", Metrics("penguins"))
        try:
            asked = (batcher.submit(request) for request in requests)
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await batcher.close()

    return asyncio.run(work())


def uri(home: Path) -> str:
    return f"sqlite:///{home}/captures.db"


def kept(home: Path) -> list[Capture]:
    store = open_store(uri(home))
    captures = list(store.unlabelled())
    store.close()
    return captures


def test_many_questions_at_once_are_kept_in_order(tmp_path: Path) -> None:
    requests = [make_request(f"{i}-0", f"{i}-1") for i in range(500)]
    assert set(submit_all(tmp_path, requests)) == {None}
    assert [c.event_id for c in kept(tmp_path)] == [e for q in requests for e in q.event_ids]


def test_each_question_gets_the_prediction_of_its_own_rows_and_version(tmp_path: Path) -> None:
    masses = np.linspace(1000, 10000, 40)
    requests = [
        make_request(str(i), mass=float(mass), by=(FIRST, SECOND)[i % 2])
        for i, mass in enumerate(masses)
    ]
    submit_all(tmp_path, requests)
    for asked in requests:
        (capture,) = asked.captures
        (expected,) = asked.version.model.probabilities(asked.accepted.rows)
        assert list(capture.probabilities.values()) == list(expected)
        assert capture.model_version == asked.version.number


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_whatever_is_batched_together_each_row_gets_what_it_gets_alone(sizes: list[int]) -> None:
    masses = iter(range(1000, 10_000, 97))
    requests = [
        make_request(*map(str, range(size)), mass=next(masses), by=(FIRST, SECOND)[size % 2])
        for size in sizes
    ]
    predict(requests, "penguins")
    for asked in requests:
        alone = asked.version.model.probabilities(asked.accepted.rows[:1])[0].tolist()
        for capture in asked.captures:
            assert list(capture.probabilities.values()) == alone
            assert capture.confidence == max(alone)
            assert capture.prediction == SPEC.target.classes[alone.index(max(alone))]


def test_the_conflict_of_one_question_refuses_no_other(tmp_path: Path) -> None:
    requests = [
        make_request("a"),
        make_request("b", "a", mass=None),
        make_request("c"),
        make_request("a"),
    ]
    outcomes = submit_all(tmp_path, requests)
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        ConflictError,
        type(None),
        type(None),
    ]
    assert sorted(c.event_id for c in kept(tmp_path)) == ["a", "c"]
    assert {c.inputs["body_mass_g"] for c in kept(tmp_path)} == {5800}


def test_a_repeated_question_is_answered_as_it_was_the_first_time(tmp_path: Path) -> None:
    submit_all(tmp_path, [make_request("a", by=FIRST)])
    again = make_request("a", by=SECOND)
    submit_all(tmp_path, [again])
    assert again.captures == kept(tmp_path)
    assert again.captures[0].model_version == "1"


def test_a_question_outside_the_sample_is_answered_and_not_kept(tmp_path: Path) -> None:
    unsampled = make_request("a", is_captured=False)
    assert submit_all(tmp_path, [unsampled, make_request("b")]) == [None, None]
    assert unsampled.captures
    assert [c.event_id for c in kept(tmp_path)] == ["b"]


def test_a_shadow_is_captured_beside_the_answer(tmp_path: Path) -> None:
    asked = make_request("a", "b", shadow=SECOND)
    submit_all(tmp_path, [asked])
    assert {c.model_version for c in asked.captures} == {"1"}
    store = open_store(uri(tmp_path))
    shadows = store.read_shadow(Window.of(asked.captures[0].captured_at))
    store.close()
    assert list(shadows["event_id"]) == ["a", "b"]
    assert set(shadows["model_version"]) == {"2"}


def broken_version() -> Version:
    """A version whose spec has a column that no row brings."""
    first, *others = SPEC.columns
    spec = replace(SPEC, columns=(replace(first, name="absent"), *others))
    return Version(
        VersionFolder("3", Path()), replace(tiny_model(3), spec=spec), Validator(SPEC), utc_now()
    )


def test_a_shadow_that_breaks_disturbs_nobody(tmp_path: Path) -> None:
    assert (
        submit_all(tmp_path, [make_request("a", shadow=broken_version()), make_request("b")])
        == [None] * 2
    )
    assert [c.event_id for c in kept(tmp_path)] == ["a", "b"]


def test_a_version_that_breaks_fails_its_own_questions_only(tmp_path: Path) -> None:
    outcomes = submit_all(
        tmp_path, [make_request("a"), make_request("b", by=broken_version()), make_request("c")]
    )
    assert [outcome is None for outcome in outcomes] == [True, False, True]
    assert [c.event_id for c in kept(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("is_named", [True, False])
def test_a_store_that_hangs_is_left_to_itself_and_the_log_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    monkeypatch.setattr(batching, "HAND_OVER_SECONDS", 0.05)
    hung, let_go = threading.Event(), threading.Event()
    append = SqliteStore.append

    def hang(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        hung.set()
        let_go.wait(30)
        return append(store, captures)

    async def work() -> None:
        store = open_buffered_store(uri(tmp_path), tmp_path / "spill", PLENTY)
        batcher = Batcher(store, "penguins", Metrics("penguins"))
        await batcher.submit(replace(make_request("before"), is_named=is_named))
        monkeypatch.setattr(SqliteStore, "append", hang)
        first = [replace(make_request(str(i)), is_named=is_named) for i in range(3)]
        await asyncio.gather(*(batcher.submit(asked) for asked in first))
        assert hung.is_set()
        again = replace(make_request("0", by=SECOND), is_named=is_named)
        await batcher.submit(again)
        assert again.captures == first[0].captures
        await batcher.submit(make_request("after"))
        assert threading.active_count() < 20
        let_go.set()
        await batcher.close()

    asyncio.run(work())
    store = open_buffered_store(uri(tmp_path), tmp_path / "spill", PLENTY)
    wait_until(lambda: is_back(store))
    store.close()
    assert sorted(c.event_id for c in kept(tmp_path)) == ["0", "1", "2", "after", "before"]
    assert {c.model_version for c in kept(tmp_path)} == {"1"}


def test_one_request_that_no_store_takes_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [make_request("a"), make_request("odd", mass=2**70), make_request("b")]
    append = SqliteStore.append

    def refuse(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        if any(c.event_id == "odd" for c in captures):
            raise InvalidCaptureError("too odd")
        return append(store, captures)

    monkeypatch.setattr(SqliteStore, "append", refuse)
    outcomes = [type(outcome) for outcome in submit_all(tmp_path, requests)]
    assert outcomes == [type(None), CaptureFailedError, type(None)]
    assert [c.event_id for c in kept(tmp_path)] == ["a", "b"]


def test_a_worker_that_cannot_go_on_notifies_who_waits_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[asyncio.Task[None]] = []
    monkeypatch.setattr(batching, "end_worker_if_failed", ended.append)

    async def work() -> list[Any]:
        store = open_buffered_store(uri(tmp_path), tmp_path / "spill", PLENTY)
        batcher = Batcher(store, "penguins", Metrics("penguins"))

        def no_thread(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(batcher._thread, "run", no_thread)
        asked = (batcher.submit(make_request(str(i))) for i in range(5))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0)
        await batcher.close()
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(work())] == [CaptureFailedError] * 5
    assert len(ended) == 1


def test_what_still_waits_is_written_before_the_end(tmp_path: Path) -> None:
    async def work() -> None:
        store = open_buffered_store(uri(tmp_path), tmp_path / "spill", PLENTY)
        batcher = Batcher(store, "penguins", Metrics("penguins"))
        waiting = [asyncio.ensure_future(batcher.submit(make_request(str(i)))) for i in range(100)]
        await asyncio.sleep(0)
        await batcher.close()
        await asyncio.gather(*waiting)
        assert batcher.written == 100

    asyncio.run(work())
    assert len(kept(tmp_path)) == 100


def test_when_nothing_can_be_kept_everyone_who_waits_is_notified(tmp_path: Path) -> None:
    async def work() -> list[Any]:
        store = open_buffered_store(uri(tmp_path), tmp_path / "spill", PLENTY)
        batcher = Batcher(store, "penguins", Metrics("penguins"))
        store.close()
        asked = (batcher.submit(make_request(str(i))) for i in range(5))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(work())] == [CaptureFailedError] * 5
    assert kept(tmp_path) == []
