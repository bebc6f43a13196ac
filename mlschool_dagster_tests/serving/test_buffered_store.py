"""Nothing that was acknowledged is lost or doubled while the store comes and goes."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.idempotency import NO_DUPLICATES
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.sqlite import SqliteStore
from mlschool_dagster.capture.store import Appended, StoreUnavailableError, open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving import buffered_store
from mlschool_dagster.serving.buffered_store import BufferFullError, open_buffered_store
from mlschool_dagster.serving.write_ahead_log import WriteAheadLog, captures_of, size_of_all
from mlschool_dagster_tests.capture.samples import WINDOW, capture
from mlschool_dagster_tests.serving.store_outage import (
    PLENTY,
    Place,
    append_and_acknowledge,
    is_back,
    wait_until,
)

SPAWN = get_context("spawn")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)


def test_a_store_that_is_there_needs_no_log(place: Place) -> None:
    store = place.open()
    store.append([capture("a")])
    store.count_refusals(WINDOW, {"malformed": 2})
    store.close()
    assert place.events() == ["a"]
    assert open_store(place.uri).refusals(WINDOW) == {"malformed": 2}
    assert not place.buffer_folder.exists()


def test_the_order_of_captures_outlives_an_absence(place: Place) -> None:
    store = place.open()
    store.append([capture("0")])
    place.take_offline()
    assert store.append([capture("1"), capture("2")]) == NO_DUPLICATES
    assert store.append([capture("3")]) == NO_DUPLICATES
    assert store.buffered_bytes > 0
    with pytest.raises(StoreUnavailableError):
        store.count_refusals(WINDOW, {"malformed": 1})
    place.bring_online()
    number = 4
    while not is_back(store):
        store.append([capture(str(number))])
        number += 1
    store.append([capture(str(number))])
    store.close()
    assert place.events() == [str(i) for i in range(number + 1)]
    assert size_of_all(place.buffer_folder) == 0


def test_a_server_starts_while_its_store_is_unavailable(place: Place) -> None:
    place.take_offline()
    store = place.open()
    store.append([capture("a")])
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    assert place.events() == ["a"]


def test_a_store_that_never_can_be_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No capture store is known"):
        open_buffered_store("nowhere://store", tmp_path, PLENTY)


def test_repetitions_are_known_while_the_store_is_unavailable(place: Place) -> None:
    store = place.open()
    place.take_offline()
    store.append([capture("a")])
    again = store.append([capture("a", timedelta(minutes=1))])
    assert again.duplicates == {"a": capture("a")}
    assert store.append([capture("b"), capture("a", mass=1)]).conflicts == {"a"}
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    assert place.events() == ["a"]


def test_a_conflict_that_shows_late_is_kept_under_another_id(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    another_server = open_store(place.uri)
    another_server.append([capture("a", mass=1), capture("a", mass=1, role=Role.SHADOW)])
    another_server.close()
    store = place.open()
    place.take_offline()
    store.append([capture("a", mass=2), capture("a", mass=2, role=Role.SHADOW), capture("b")])
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    first, moved, other = place.masses().items()
    assert (first, other[0]) == (("a", 1), "b")
    assert moved[0].startswith("a~")
    assert moved[1] == 2
    shadows = open_store(place.uri).read_shadow(WINDOW)
    assert list(shadows["event_id"]) == ["a", moved[0]]
    assert [r.levelno for r in caplog.records if "answered otherwise" in r.message] == [
        logging.WARNING
    ]


def test_what_neither_can_keep_is_reported(place: Place) -> None:
    store = place.open(limit=1000)
    place.take_offline()
    kept = []
    with pytest.raises(BufferFullError, match="make room"):
        for number in range(10):
            store.append([capture(str(number))])
            kept.append(str(number))
    assert 0 < len(kept) < 10
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.append([capture("after")])
    store.close()
    assert place.events() == [*kept, "after"]


def test_a_disk_that_takes_nothing_is_reported(place: Place) -> None:
    place.buffer_folder.touch()
    store = place.open()
    store.append([capture("before")])
    place.take_offline()
    with pytest.raises(BufferFullError):
        store.append([capture("a")])
    place.buffer_folder.unlink()
    store.append([capture("a")])
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    assert place.events() == ["before", "a"]


def test_an_answer_that_turns_out_to_be_another_is_kept_too(place: Place) -> None:
    answered = replace(capture("a"), model_version="4", prediction="Adelie")
    another_server = open_store(place.uri)
    another_server.append([capture("a")])
    another_server.close()
    place.take_offline()
    store = place.open()
    store.append([capture("b"), answered])
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    frame = open_store(place.uri).read(WINDOW)
    first, other, moved = zip(frame["event_id"], frame["model_version"], strict=True)
    assert (first, other) == (("a", "3"), ("b", "3"))
    assert moved[0].startswith("a~")
    assert moved[1] == "4"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_the_server_has_answered_it_answers_again_while_the_store_is_unavailable(
    place: Place, is_restarted: bool
) -> None:
    """Whichever worker is asked, and whether it was answered by the store or the log."""
    workers = [place.open() for _ in range(3)]
    rows = [capture("job"), capture("job#1", mass=3000)]
    workers[0].append([*rows, capture("unnamed")], named=rows)
    place.take_offline()
    workers[1].append([capture("late")])
    if is_restarted:
        for worker in workers:
            worker.close()
        workers = [place.open() for _ in range(3)]
    later = [replace(c, model_version="4", prediction="Adelie") for c in (*rows, capture("late"))]
    for worker in workers:
        assert worker.append(later).duplicates == {c.event_id: c for c in (*rows, capture("late"))}
        assert worker.append([capture("job")]).conflicts == {"job"}
        assert worker.append([capture("late", mass=1)]).conflicts == {"late"}
    place.bring_online()
    wait_until(lambda: all(map(is_back, workers)))
    for worker in workers:
        assert worker.append(later).duplicates.keys() == {"job", "job#1", "late"}
        worker.close()
    assert sorted(place.events()) == ["job", "job#1", "late", "unnamed"]


@pytest.mark.parametrize("is_kept", [False, True], ids=["before the store", "after the store"])
def test_what_a_killed_worker_may_have_kept_is_what_is_answered_while_the_store_is_unavailable(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """The capture of an attempt that nobody was answered is not kept beside the answer."""
    append = SqliteStore.append

    def killed(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        if captures and is_kept:
            append(store, captures)
        if captures:
            raise SystemExit
        return append(store, captures)

    one, other = place.open(), place.open()
    attempt = [capture("a"), capture("a#1")]
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append", killed)
        with pytest.raises(SystemExit):
            one.append(attempt)
    place.take_offline()
    again = [replace(c, model_version="4", prediction="Adelie") for c in attempt]
    assert other.append(again).duplicates == {c.event_id: c for c in attempt}
    place.bring_online()
    wait_until(lambda: is_back(one) and is_back(other))
    for worker in (one, other):
        assert worker.append(again).duplicates == {c.event_id: c for c in attempt}
        worker.close()
    assert place.events() == ["a", "a#1"]


def test_what_was_answered_is_refused_for_other_rows_that_hung_in_the_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows are appended by another thread while the first one hangs."""
    one, other = place.open(), place.open()
    one.append([capture("a")])
    rows = [capture("a"), capture("a#1")]
    hung, let_go = threading.Event(), threading.Event()
    append = SqliteStore.append

    def hang(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        if captures:
            hung.set()
            let_go.wait(30)
        return append(store, captures)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append", hang)
        thread = threading.Thread(target=other.append, args=(rows,))
        thread.start()
        assert hung.wait(30)
        other.leave("it hangs")
        assert other.append(rows).conflicts == {"a", "a#1"}
        let_go.set()
        thread.join()
    wait_until(lambda: is_back(one) and is_back(other))
    one.close()
    other.close()
    assert place.events() == ["a"]


def test_what_a_killed_worker_kept_in_the_log_is_answered_when_the_store_is_unavailable_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = WriteAheadLog.append

    def killed(*arguments: Any) -> Appended:
        append(*arguments)
        raise SystemExit

    one, other = place.open(), place.open()
    place.take_offline()
    with monkeypatch.context() as patch:
        patch.setattr(WriteAheadLog, "append", killed)
        with pytest.raises(SystemExit):
            one.append([capture("a")])
    place.bring_online()
    wait_until(lambda: is_back(one) and is_back(other))
    place.take_offline()
    again = replace(capture("a"), model_version="4", prediction="Adelie")
    assert other.append([again]).duplicates == {"a": capture("a")}
    place.bring_online()
    wait_until(lambda: is_back(one) and is_back(other))
    one.close()
    other.close()
    assert place.events() == ["a"]


def test_what_neither_store_nor_log_would_promise_may_be_kept_and_is_answered_then(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store keeps it and says nothing, the log is full: the caller is asked to retry."""
    append = SqliteStore.append

    def silent(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        append(store, captures)
        raise StoreUnavailableError("The connection was lost.")

    store = place.open(limit=600)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append", silent)
        with pytest.raises(BufferFullError):
            store.append([capture("a"), capture("b")])
        place.take_offline()
    again = replace(capture("a"), model_version="4", prediction="Adelie")
    assert store.append([again]).duplicates == {"a": capture("a")}
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    assert sorted(place.events()) == ["a", "b"]


def test_what_the_log_has_answered_is_known_when_the_store_is_unavailable_again(
    place: Place,
) -> None:
    one, other = place.open(), place.open()
    place.take_offline()
    one.append([capture("a")])
    place.bring_online()
    wait_until(lambda: is_back(one) and is_back(other))
    place.take_offline()
    again = other.append([replace(capture("a"), model_version="4")])
    assert again.duplicates == {"a": capture("a")}
    one.close()
    other.close()


def test_a_request_outside_the_sample_is_answered_again_and_kept_nowhere(place: Place) -> None:
    workers = [place.open() for _ in range(2)]
    assert workers[0].remember([capture("a"), capture("a#1")]) == NO_DUPLICATES
    later = [replace(c, model_version="4") for c in (capture("a"), capture("a#1"))]
    for worker in workers:
        assert worker.remember(later).duplicates == {"a": capture("a"), "a#1": capture("a#1")}
        assert worker.remember([capture("a")]).conflicts == {"a"}
        worker.close()
    assert place.events() == []


def test_a_worker_whose_store_is_there_waits_for_what_others_have_in_the_log(
    place: Place,
) -> None:
    one, other = place.open(), place.open()
    one.leave("it hangs, but only here")
    with one._open_wal().replaying() as nobody_takes_out:
        assert nobody_takes_out
        one.append([capture("a")])
        assert other.append([replace(capture("a"), model_version="4")]).duplicates == {
            "a": capture("a")
        }
        other.append([capture("b")])
    wait_until(lambda: is_back(one) and is_back(other))
    other.append([capture("c")])
    one.close()
    other.close()
    assert place.events() == ["a", "b", "c"]


def test_a_store_that_hangs_on_its_way_back_holds_nobody_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the write-ahead log is replayed while nobody may add to it."""
    monkeypatch.setattr(buffered_store, "HAND_OVER_SECONDS", 0.05)
    hung, let_go = threading.Event(), threading.Event()
    oldest, append = WriteAheadLog.oldest, SqliteStore.append

    def one_more(wal: WriteAheadLog, most: int) -> list[Capture]:
        result = oldest(wal, most)
        if not result and not let_go.is_set():
            # Before the last scan one more came.
            result = [capture("late")]
        return result

    def hang(store: SqliteStore, captures: Sequence[Capture]) -> Appended:
        if [c.event_id for c in captures] == ["late"]:
            hung.set()
            let_go.wait(30)
        return append(store, captures)

    monkeypatch.setattr(WriteAheadLog, "oldest", one_more)
    monkeypatch.setattr(SqliteStore, "append", hang)
    wal = WriteAheadLog(place.buffer_folder, PLENTY)
    wal.append([capture("a")])
    wal.close()
    store = place.open()
    assert hung.wait(30)
    store.append([capture("b")])
    let_go.set()
    wait_until(lambda: is_back(store))
    store.close()
    assert {"a", "b"} <= set(place.events())


def test_what_no_store_takes_is_set_aside_and_holds_nothing_up(place: Place) -> None:
    place.take_offline()
    store = place.open()
    odd = replace(capture("odd"), endpoint=None)  # type: ignore[arg-type]
    store.append([capture("a"), odd, capture("b")])
    store.append([capture("c")])
    place.bring_online()
    wait_until(lambda: is_back(store))
    store.close()
    assert place.events() == ["a", "b", "c"]
    (aside,) = (place.buffer_folder / "refused").iterdir()
    assert captures_of(aside.read_bytes()) == [odd]


APPENDS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([1, 2])), min_size=1, max_size=4
)
STEPS = st.lists(APPENDS | st.sampled_from(["outage", "back", "end", "other"]), max_size=12)


@settings(max_examples=25)
@given(steps=STEPS)
def test_any_history_is_in_the_store_once(steps: list[str | list[tuple[str, int]]]) -> None:
    acknowledged: set[tuple[str, int]] = set()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        store, other = place.open(), place.open()
        for step in steps:
            if step == "other":
                store, other = other, store
            elif step == "outage":
                place.take_offline()
            elif step == "back":
                place.bring_online()
            elif step == "end":
                store.close()
                _tear(place.buffer_folder)
                store = place.open()
            else:
                assert not isinstance(step, str)
                if not store.append([capture(event, mass=mass) for event, mass in step]).conflicts:
                    acknowledged |= set(step)
        place.bring_online()
        wait_until(lambda: is_back(store) and is_back(other))
        store.close()
        other.close()
        kept = {(event.partition("~")[0], mass) for event, mass in place.masses().items()}
        assert kept == acknowledged
        assert len(place.masses()) == len(acknowledged)


def _tear(wals: Path) -> None:
    """Leave each log as an owner would that died in the midst of writing."""
    for segment in wals.glob("*.jsonl"):
        with segment.open("ab") as file:
            file.write(b'1234abcd [{"event_id": "never ackno')


@pytest.mark.parametrize(
    "outage_after", [0, 60], ids=["unavailable from the start", "unavailable later"]
)
def test_what_was_acknowledged_survives_a_killed_owner(
    place: Place, tmp_path: Path, outage_after: int
) -> None:
    notes = tmp_path / "acknowledged"
    if not outage_after:
        place.take_offline()
    owner = SPAWN.Process(target=append_and_acknowledge, args=(tmp_path, notes))
    owner.start()
    wait_until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= outage_after)
    place.take_offline()
    seen = len(notes.read_text().splitlines())
    wait_until(lambda: len(notes.read_text().splitlines()) >= seen + 60)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    place.bring_online()
    store = place.open()
    wait_until(lambda: size_of_all(place.buffer_folder) == 0)
    store.close()
    acknowledged = notes.read_text().splitlines()
    kept = place.events()
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 3
