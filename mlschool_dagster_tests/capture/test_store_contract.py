"""What every capture store promises, whatever keeps its data."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture import sql
from mlschool_dagster.capture.idempotency import (
    NO_DUPLICATES,
    next_row_id,
    row_ids,
    with_distinct_ids,
)
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Capture, Label, Role, captures_frame
from mlschool_dagster.capture.store import Appended, CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster_tests.capture.samples import (
    NOON,
    WINDOW,
    capture,
    event_ids,
    label,
)

HOUR = timedelta(hours=1)
NEXT_WINDOW = Window(WINDOW.end)


def test_a_capture_is_read_as_it_was_appended(store: CaptureStore) -> None:
    written = capture("a", timedelta(minutes=59, microseconds=7))
    assert store.append([written]) == NO_DUPLICATES
    frame = store.read(WINDOW)
    assert list(frame.columns) == [field.name for field in fields(Capture)]
    assert Capture(*next(frame.itertuples(index=False))) == written


def test_a_window_is_closed_at_its_start_and_open_at_its_end(store: CaptureStore) -> None:
    last = HOUR - timedelta(microseconds=1)
    store.append([capture("end", HOUR), capture("last", last), capture("start")])
    assert event_ids(store) == ["last", "start"]
    assert event_ids(store, NEXT_WINDOW) == ["end"]
    assert store.windows() == {WINDOW: 2, NEXT_WINDOW: 1}
    assert list(store.windows()) == [WINDOW, NEXT_WINDOW]


def test_the_newest_windows_come_first_and_hold_traffic(store: CaptureStore) -> None:
    assert store.newest_windows(3) == []
    store.append([capture("a"), capture("b"), capture("later", 3 * HOUR), capture("c", HOUR)])
    store.append([capture(f"{SMOKE_TEST_PREFIX}1", 4 * HOUR)])
    store.append([capture("d", 5 * HOUR, role=Role.SHADOW)])
    newest = [Window.of(NOON + 3 * HOUR), NEXT_WINDOW, WINDOW]
    assert [store.newest_windows(count) for count in (0, 1, 2, 9)] == [
        [],
        newest[:1],
        newest[:2],
        newest,
    ]


def test_a_stream_gives_in_bounded_frames_what_is_read_at_once(
    store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "CHUNK", 1500)
    assert list(store.stream(WINDOW)) == []
    store.append([capture(str(i)) for i in range(3100)] + [capture("elsewhere", HOUR)])
    frames = []
    for number, frame in enumerate(store.stream(WINDOW)):
        store.append([capture(f"meanwhile-{number}")])
        frames.append(frame)
    assert [len(frame) for frame in frames] == [1500, 1500, 100]
    assert [list(frame["event_id"]) for frame in frames] == [
        [str(i) for i in range(start, min(start + 1500, 3100))] for start in (0, 1500, 3000)
    ]
    whole = captures_frame([capture(str(i)) for i in range(1500)])
    pd.testing.assert_frame_equal(frames[0], whole)
    assert len(store.read(WINDOW)) == 3103


def test_the_token_of_captures_is_that_of_the_revision(store: CaptureStore) -> None:
    assert store.captures_token(WINDOW) == store.revision(WINDOW).captures_token
    store.append([capture("a"), capture("elsewhere", HOUR), capture("a", role=Role.SHADOW)])
    assert store.captures_token(WINDOW) == store.revision(WINDOW).captures_token


def test_a_long_history_is_reported_in_several_scans(
    store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "SCAN_LIMIT", 4)
    store.append([capture(str(i), (i // 3) * HOUR) for i in range(9)])
    store.append_labels(label(str(i)) for i in range(9))
    for since in (store.captures_since, store.labels_since):
        windows: list[int] = []
        cursor: str | None = None
        for _ in range(4):
            changes = since(cursor)
            cursor = changes.cursor
            windows.append(len(changes.windows))
        assert windows == [2, 2, 1, 0]


def test_an_empty_window_has_the_columns_and_types_of_a_full_one(store: CaptureStore) -> None:
    empty, no_labels = store.read(WINDOW), store.read_labels(WINDOW)
    store.append([capture("a")])
    store.append_labels([label("a")])
    pd.testing.assert_series_equal(empty.dtypes, store.read(WINDOW).dtypes)
    pd.testing.assert_series_equal(no_labels.dtypes, store.read_labels(WINDOW).dtypes)
    assert isinstance(empty["captured_at"].dtype, pd.DatetimeTZDtype)
    assert len(empty) == len(no_labels) == 0


def test_an_empty_store_answers_everything(store: CaptureStore) -> None:
    assert store.windows() == {}
    assert list(store.unlabelled()) == []
    assert (store.revision(WINDOW).captures, store.revision(WINDOW).labels) == (0, 0)
    assert store.captures_since(None).windows == store.labels_since(None).windows == frozenset()
    assert store.append([]) == NO_DUPLICATES
    assert store.append_labels([]) == 0


def test_a_repetition_changes_nothing(store: CaptureStore) -> None:
    store.append([capture("a")])
    before = store.revision(WINDOW)
    assert store.append([capture("a", HOUR)]) == Appended({"a": capture("a")}, frozenset())
    assert store.revision(WINDOW) == before
    assert event_ids(store) == ["a"]


def test_a_known_event_id_with_other_inputs_is_refused_with_its_whole_batch(
    store: CaptureStore,
) -> None:
    store.append([capture("a")])
    assert store.append([capture("b"), capture("a", mass=None), capture("c")]).conflicts == {"a"}
    assert store.append([capture("d"), capture("d", mass=1)]).conflicts == {"d"}
    assert event_ids(store) == ["a"]
    assert store.append([capture("b"), capture("d")]) == NO_DUPLICATES


NAMES = st.sampled_from(["a", "a#", "a#1", "a#2", "a#1#", "a##", "a-1", "a~0123456789abcdef", "b"])
ROWS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3)
BATCHES = st.lists(st.lists(st.tuples(NAMES, ROWS), min_size=1, max_size=3), max_size=6)


@settings(max_examples=25)
@given(batches=BATCHES)
@example(batches=[[("a", [1, 2])], [("a", [1])], [("a#1", [2])], [("a", [1, 2, 1])]])
@example(batches=[[("a", [1]), ("a", [1, 1])]])
def test_a_name_belongs_to_one_request_with_exactly_its_rows(
    fresh_uri: Callable[[Path], str], batches: list[list[tuple[str, list[int]]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(fresh_uri(Path(folder)))
        taken: dict[str, list[int]] = {}
        for batch in batches:
            requests = [
                [
                    capture(event_id, mass=mass)
                    for event_id, mass in zip(row_ids(name, len(rows)), rows, strict=True)
                ]
                for name, rows in batch
            ]
            after = {**dict(reversed(batch)), **taken}
            fits = all(after[name] == rows for name, rows in batch)
            outcome = store.append([row for request in requests for row in request])
            assert bool(outcome.conflicts) != fits
            taken = after if fits else taken
        kept = dict(zip(event_ids(store), store.read(WINDOW)["inputs"], strict=True))
        store.close()
        assert {event: inputs["body_mass_g"] for event, inputs in kept.items()} == {
            event_id: mass
            for name, rows in taken.items()
            for event_id, mass in zip(row_ids(name, len(rows)), rows, strict=True)
        }


@given(names=st.lists(st.text("a#1~0", min_size=1), min_size=2, max_size=2, unique=True))
def test_no_two_names_share_an_event_id(names: list[str]) -> None:
    ids = [event_id for name in names for event_id in row_ids(name, 12)]
    ids += [c.event_id for c in with_distinct_ids([capture(event_id) for event_id in ids])]
    assert len(set(ids)) == len(ids)
    for name in names:
        first, *others = row_ids(name, 12)
        assert list(map(next_row_id, [first, *others[:-1]])) == others


def test_labels_are_joined_by_event_and_the_newest_counts(store: CaptureStore) -> None:
    store.append([capture("a"), capture("b"), capture("c"), capture("elsewhere", HOUR)])
    newer = label("a", "Adelie", after=HOUR)
    assert store.append_labels([newer, label("a"), label("elsewhere"), label("c")]) == 4
    labels = store.read_labels(WINDOW)
    assert dict(zip(labels["event_id"], labels["label"], strict=True)) == {
        "a": "Adelie",
        "c": "Gentoo",
    }
    assert labels["labelled_at"][0] == newer.labelled_at
    assert labels["source"][0] == "expert"
    assert [c.event_id for c in store.unlabelled()] == ["b"]
    assert store.revision(WINDOW).labels == 2


def test_the_same_label_again_changes_nothing(store: CaptureStore) -> None:
    store.append([capture("a")])
    store.append_labels([label("a")])
    before = store.revision(WINDOW)
    assert store.append_labels([label("a")]) == 0
    assert store.revision(WINDOW) == before


def test_a_label_may_come_before_its_capture(store: CaptureStore) -> None:
    store.append_labels([label("a")])
    cursor = store.labels_since(None).cursor
    assert store.labels_since(None).windows == frozenset()
    store.append([capture("a")])
    assert store.captures_since(None).windows == {WINDOW}
    assert list(store.read_labels(WINDOW)["event_id"]) == ["a"]
    assert store.labels_since(cursor).windows == frozenset()


def test_a_revision_changes_exactly_when_its_window_does(store: CaptureStore) -> None:
    store.append([capture("a")])
    first = store.revision(WINDOW)
    store.append([capture("elsewhere", HOUR)])
    store.append_labels([label("elsewhere")])
    assert store.revision(WINDOW) == first
    store.append([capture("b")])
    second = store.revision(WINDOW)
    assert (second.captures, second.labels) == (2, 0)
    assert second.captures_token != first.captures_token
    assert second.labels_token == first.labels_token
    store.append_labels([label("a")])
    third = store.revision(WINDOW)
    assert third.labels_token != second.labels_token
    assert third.captures_token == second.captures_token


def test_a_cursor_covers_only_what_landed_after_it(store: CaptureStore) -> None:
    store.append([capture("a")])
    store.append_labels([label("a")])
    captures, labels = store.captures_since(None), store.labels_since(None)
    assert captures.windows == labels.windows == {WINDOW}
    assert store.captures_since(captures.cursor) == type(captures)(frozenset(), captures.cursor)
    store.append([capture("b", HOUR), capture("late")])
    assert store.captures_since(captures.cursor).windows == {WINDOW, NEXT_WINDOW}
    store.append_labels([label("b")])
    assert store.labels_since(labels.cursor).windows == {NEXT_WINDOW}


def test_probes_are_kept_but_are_no_traffic(store: CaptureStore) -> None:
    probe = f"{SMOKE_TEST_PREFIX}1"
    store.append([capture(probe)])
    assert store.append([capture(probe, mass=None)]).conflicts == {probe}
    assert event_ids(store) == []
    assert store.windows() == {}
    assert list(store.unlabelled()) == []
    assert store.revision(WINDOW).captures == 0
    assert store.captures_since(None).windows == frozenset()
    store.append_labels([label(probe)])
    assert store.labels_since(None).windows == frozenset()
    assert store.revision(WINDOW).labels == 0
    assert len(store.read_labels(WINDOW)) == 0


def test_what_is_unlabelled_can_be_labelled_while_it_is_read(store: CaptureStore) -> None:
    store.append([capture(str(i)) for i in range(2500)])

    def labels() -> Iterator[Label]:
        for number, unlabelled in enumerate(store.unlabelled()):
            store.append([capture(f"meanwhile-{number}")])
            yield label(unlabelled.event_id)

    assert store.append_labels(labels()) == 2500
    assert store.revision(WINDOW).labels == 2500
    assert len(list(store.unlabelled())) == 2500


def test_everything_is_there_after_reopening(uri: str) -> None:
    store = open_store(uri)
    store.append([capture("a"), capture("b", HOUR)])
    store.append_labels([label("a")])
    captures, labels = store.captures_since(None), store.labels_since(None)
    revision = store.revision(WINDOW)
    store.close()
    again = open_store(uri)
    assert event_ids(again) == ["a"]
    assert again.revision(WINDOW) == revision
    assert again.captures_since(captures.cursor).windows == frozenset()
    assert again.labels_since(labels.cursor).windows == frozenset()
    again.close()


def test_a_cursor_of_another_store_hides_nothing(
    fresh_uri: Callable[[Path], str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    tokens = []
    for folder in (old, new):
        folder.mkdir()
        store = open_store(fresh_uri(folder))
        store.append([capture("a")])
        tokens.append((store.captures_since(None).cursor, store.revision(WINDOW).captures_token))
        if folder == new:
            assert store.captures_since(tokens[0][0]).windows == {WINDOW}
        store.close()
    assert tokens[0][1] != tokens[1][1]


def test_every_role_is_kept_and_shadows_are_read_apart(store: CaptureStore) -> None:
    store.append(
        [
            capture("a", role=Role.PRIMARY, sampling_share=0.25),
            capture("b", role=Role.CANARY),
            capture("a", role=Role.SHADOW, sampling_share=0.25),
            capture(f"{SMOKE_TEST_PREFIX}1", role=Role.CANDIDATE),
            capture(f"{SMOKE_TEST_PREFIX}1", role=Role.SHADOW),
        ]
    )
    frame = store.read(WINDOW)
    assert list(frame["role"]) == ["primary", "canary"]
    assert list(frame["sampling_share"]) == [0.25, 1.0]
    shadows = store.read_shadow(WINDOW)
    assert list(shadows["event_id"]) == ["a"]
    pd.testing.assert_series_equal(frame.dtypes, shadows.dtypes)
    pd.testing.assert_series_equal(frame.dtypes, store.read_shadow(NEXT_WINDOW).dtypes)


def test_a_shadow_is_no_traffic(store: CaptureStore) -> None:
    store.append([capture("a")])
    before, cursor = store.revision(WINDOW), store.captures_since(None).cursor
    store.append([capture("a", role=Role.SHADOW), capture("alone", role=Role.SHADOW)])
    assert store.revision(WINDOW) == before
    assert store.windows() == {WINDOW: 1}
    assert [c.event_id for c in store.unlabelled()] == ["a"]
    assert store.captures_since(cursor).windows == frozenset()
    store.append_labels([label("alone")])
    assert store.labels_since(None).windows == frozenset()
    store.append_labels([label("a")])
    assert store.revision(WINDOW).labels == len(store.read_labels(WINDOW)) == 1


def test_a_shadow_neither_repeats_nor_refuses(store: CaptureStore) -> None:
    store.append([capture("a", role=Role.SHADOW)])
    assert store.append([capture("a", mass=1)]) == NO_DUPLICATES
    assert store.append([capture("a", mass=2, role=Role.SHADOW)]) == NO_DUPLICATES
    assert [inputs["body_mass_g"] for inputs in store.read_shadow(WINDOW)["inputs"]] == [5800]


def test_a_repetition_gets_what_was_answered_first(store: CaptureStore) -> None:
    first = capture("a", role=Role.CANARY, sampling_share=0.5)
    store.append([first])
    later = timedelta(minutes=1)
    outcome = store.append([capture("b"), capture("a", later), capture("b", later)])
    assert outcome == Appended({"a": first, "b": capture("b")}, frozenset())
    assert event_ids(store) == ["a", "b"]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100, 1000])
def test_a_batch_of_any_size_is_kept_whole_or_not(store: CaptureStore, size: int) -> None:
    batch = [capture(str(number)) for number in range(size)]
    assert store.append([*batch, capture("0", mass=1)]).conflicts == {"0"}
    assert event_ids(store) == []
    assert store.append(batch) == NO_DUPLICATES
    assert store.append(batch).duplicates == {c.event_id: c for c in batch}
    assert event_ids(store) == [c.event_id for c in batch]


def test_refusals_add_up_by_window_and_reason(store: CaptureStore) -> None:
    store.count_refusals(WINDOW, {"malformed": 2, "too large": 1})
    store.count_refusals(WINDOW, {"too large": 4})
    store.count_refusals(NEXT_WINDOW, {"malformed": 1})
    store.count_refusals(NEXT_WINDOW, {})
    assert list(store.refusals(WINDOW).items()) == [("too large", 5), ("malformed", 2)]
    assert store.refusals(NEXT_WINDOW) == {"malformed": 1}
    assert store.refusals(Window.of(NOON - HOUR)) == {}


def test_refusals_are_counted_by_many_at_once(uri: str) -> None:
    def work(thread: int) -> None:
        store = open_store(uri)
        for _ in range(20):
            store.count_refusals(WINDOW, {"malformed": 1, f"reason {thread % 2}": 1})
        store.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    store = open_store(uri)
    assert store.refusals(WINDOW) == {"malformed": 80, "reason 0": 40, "reason 1": 40}
    store.close()


def test_a_window_is_forgotten_with_all_that_belongs_to_it(store: CaptureStore) -> None:
    store.append([capture(str(i)) for i in range(2100)])
    store.append([capture(str(i), role=Role.SHADOW) for i in range(1100)])
    store.append([capture("elsewhere", HOUR), capture("elsewhere", HOUR, role=Role.SHADOW)])
    store.append_labels(label(str(i)) for i in range(2100))
    store.append_labels([label("elsewhere"), label("nowhere")])
    for window in (WINDOW, NEXT_WINDOW):
        store.count_refusals(window, {"malformed": 1})
    captures, labels = store.captures_since(None).cursor, store.labels_since(None).cursor
    kept = store.revision(NEXT_WINDOW)
    assert (store.count(WINDOW), store.count(NEXT_WINDOW)) == (2100, 1)
    assert store.delete(WINDOW) == 2100
    assert store.newest_windows() == [NEXT_WINDOW]
    assert (store.count(WINDOW), store.delete(WINDOW)) == (0, 0)
    assert len(store.read_shadow(WINDOW)) == len(store.read_labels(WINDOW)) == 0
    assert (store.refusals(WINDOW), store.refusals(NEXT_WINDOW)) == ({}, {"malformed": 1})
    assert store.revision(NEXT_WINDOW) == kept
    assert len(store.read_shadow(NEXT_WINDOW)) == 1
    store.append([capture("0"), capture("1", 2 * HOUR)])
    assert list(store.read_labels(WINDOW)["event_id"]) == []
    assert store.captures_since(captures).windows == {WINDOW, Window.of(NOON + 2 * HOUR)}
    store.append_labels([label("1")])
    assert store.labels_since(labels).windows == {Window.of(NOON + 2 * HOUR)}


def test_a_window_that_is_half_forgotten_keeps_its_token(
    store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([capture(str(i)) for i in range(2100)])
    token = store.captures_token(WINDOW)
    change, batches = type(store)._change, iter(range(3))  # type: ignore[attr-defined]

    def dies(*arguments: object) -> int:
        next(batches)
        return int(change(*arguments))

    monkeypatch.setattr(type(store), "_change", dies)
    with pytest.raises(StopIteration):
        store.delete(WINDOW)
    assert 0 < store.count(WINDOW) < 2100
    assert store.captures_token(WINDOW) == token
