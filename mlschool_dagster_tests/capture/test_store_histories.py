"""What every capture store promises of long histories, many writers and killed ones."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.idempotency import NO_DUPLICATES
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Role
from mlschool_dagster.capture.store import CaptureStore, Revision, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster_tests.capture.samples import (
    NOON,
    WINDOW,
    append_and_acknowledge,
    append_many,
    capture,
    event_ids,
    label,
    label_all,
)

SPAWN = get_context("spawn")
HOUR = timedelta(hours=1)
NEXT_WINDOW = Window(WINDOW.end)
PAGE = 1000


EVENTS = st.sampled_from(["a", "b", "c", "d", f"{SMOKE_TEST_PREFIX}e"])
ROLES = st.sampled_from([Role.PRIMARY, Role.CANARY, Role.SHADOW])
APPENDS = st.builds(
    lambda events: ("append", events),
    st.lists(
        st.tuples(EVENTS, st.sampled_from([0, 1]), st.sampled_from([1, 2]), ROLES), max_size=4
    ),
)
LABELS = st.builds(lambda events: ("label", events), st.lists(EVENTS, max_size=3))


@settings(max_examples=40)
@given(steps=st.lists(APPENDS | LABELS, max_size=8))
def test_any_history_of_appends_and_labels_is_reported_completely(
    fresh_uri: Callable[[Path], str], steps: list[tuple[str, list[object]]]
) -> None:
    known: dict[str, tuple[int, int]] = {}
    shadows: dict[str, int] = {}
    labelled: set[str] = set()
    cursor = label_cursor = None
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(fresh_uri(Path(folder)))
        for kind, events in steps:
            touched: set[int] = set()
            if kind == "append":
                rows: list[tuple[str, int, int, Role]] = events  # type: ignore[assignment]
                before = dict(known)
                answers = [row for row in rows if row[3] is not Role.SHADOW]
                for event, hour, mass, _ in answers:
                    known.setdefault(event, (hour, mass))
                conflicts = {event for event, _, mass, _ in answers if known[event][1] != mass}
                if conflicts:
                    known = before
                else:
                    for event, hour, _, role in rows:
                        if role is Role.SHADOW:
                            shadows.setdefault(event, hour)
                touched = {
                    known[event][0] for event in known.keys() - before.keys() if _counts(event)
                }
                written = [
                    capture(event, hour * HOUR, mass, role) for event, hour, mass, role in rows
                ]
                outcome = store.append(written)
                assert outcome.conflicts == conflicts
                assert set(outcome.duplicates) == (
                    set() if conflicts else _repeated([row[0] for row in answers], before)
                )
            else:
                names: list[str] = events  # type: ignore[assignment]
                new = set(names) - labelled
                labelled |= new
                assert store.append_labels(label(name) for name in names) == len(new)
                landed = store.labels_since(label_cursor)
                label_cursor = landed.cursor
                assert landed.windows == _windows(
                    {known[name][0] for name in new if name in known and _counts(name)}
                )
            changes = store.captures_since(cursor)
            cursor = changes.cursor
            assert changes.windows == _windows(touched)
        for hour in (0, 1):
            expected = {event for event in known if known[event][0] == hour and _counts(event)}
            window = Window.of(NOON + hour * HOUR)
            assert sorted(event_ids(store, window)) == sorted(expected)
            assert set(store.read_labels(window)["event_id"]) == expected & labelled
            assert set(store.read_shadow(window)["event_id"]) == {
                event for event in shadows if shadows[event] == hour and _counts(event)
            }
        store.close()


def _repeated(events: list[str], before: Container[str]) -> set[str]:
    return {event for event in events if event in before or events.count(event) > 1}


def _counts(event: str) -> bool:
    return not event.startswith(SMOKE_TEST_PREFIX)


def _windows(hours: set[int]) -> set[Window]:
    return {Window.of(NOON + hour * HOUR) for hour in hours}


def test_several_threads_share_one_store(store: CaptureStore) -> None:
    def work(thread: int) -> None:
        for number in range(20):
            store.append([capture(f"{thread}-{number}")])
            store.revision(WINDOW)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert len(set(event_ids(store))) == len(store.read(WINDOW)) == 80


def test_processes_write_label_and_follow_at_once_without_loss(uri: str) -> None:
    """Four writers and a labeller meet a fresh store; a reader follows them by cursor."""
    writers, batches, size = 4, 40, 5
    expected = writers * batches * size
    processes = [
        SPAWN.Process(target=append_many, args=(uri, f"writer{n}", batches, size))
        for n in range(writers)
    ]
    processes.append(SPAWN.Process(target=label_all, args=(uri, expected)))
    for process in processes:
        process.start()
    store = open_store(uri)
    seen: dict[Window, Revision] = {}
    cursor: str | None = None
    while any(process.is_alive() for process in processes):
        cursor = _follow(store, cursor, seen)
    cursor = _follow(store, cursor, seen)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    counted = {window: revision.captures for window, revision in seen.items()}
    assert counted == store.windows() == {WINDOW: expected // 2, NEXT_WINDOW: expected // 2}
    result = event_ids(store) + event_ids(store, NEXT_WINDOW)
    assert len(result) == len(set(result)) == expected
    labelled = sum(len(store.read_labels(window)) for window in (WINDOW, NEXT_WINDOW))
    assert labelled == expected
    store.close()


def _follow(store: CaptureStore, cursor: str | None, seen: dict[Window, Revision]) -> str:
    changes = store.captures_since(cursor)
    for window in changes.windows:
        seen[window] = store.revision(window)
    return changes.cursor


def test_what_was_acknowledged_survives_a_killed_writer(uri: str, tmp_path: Path) -> None:
    notes = tmp_path / "acknowledged"
    writer = SPAWN.Process(target=append_and_acknowledge, args=(uri, notes))
    writer.start()
    deadline = time.monotonic() + 30
    while not notes.exists() or len(notes.read_text().splitlines()) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    store = open_store(uri)
    acknowledged = notes.read_text().splitlines()
    kept = event_ids(store)
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1
    assert store.append([capture("after")]) == NO_DUPLICATES
    store.close()


def test_reading_does_not_hold_up_appending(store: CaptureStore) -> None:
    store.append([capture(str(i)) for i in range(3000)])
    pending = store.unlabelled()
    next(pending)
    appended = threading.Event()

    def append() -> None:
        store.append([capture("new")])
        appended.set()

    thread = threading.Thread(target=append)
    thread.start()
    assert appended.wait(5)
    thread.join()
    assert sum(1 for _ in pending) == 2999


@pytest.mark.slow
def test_labelling_stays_linear_and_blocks_no_append(uri: str) -> None:
    """10^5 labels in five rounds while captures are appended all the time."""
    store = open_store(uri)
    rounds, size = 5, 20_000
    waits: list[float] = []
    ended = threading.Event()

    def append() -> None:
        number = 0
        while not ended.is_set():
            started = time.perf_counter()
            store.append([capture(f"live-{number}", HOUR)])
            waits.append(time.perf_counter() - started)
            number += 1

    for number in range(rounds):
        for start in range(0, size, PAGE):
            ids = [f"{number}-{i}" for i in range(start, start + PAGE)]
            store.append([capture(event_id) for event_id in ids])
    appending = threading.Thread(target=append)
    appending.start()
    seconds = []
    for number in range(rounds):
        started = time.perf_counter()
        written = store.append_labels(label(f"{number}-{i}") for i in range(size))
        seconds.append(time.perf_counter() - started)
        assert written == size
    ended.set()
    appending.join()
    waits.sort()
    assert seconds[-1] < 3 * seconds[0]
    assert len(waits) > 100
    assert waits[int(len(waits) * 0.99)] < 0.5
    assert store.revision(WINDOW).labels == rounds * size
    store.close()
