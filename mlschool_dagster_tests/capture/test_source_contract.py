"""What every capture source promises, whatever keeps its objects, with the importer and any store.

A source under test has an entry in `places.PLACES`, which writes the objects that its cloud would.
"""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture import importer
from mlschool_dagster.capture.importer import Importer, ImportReport, has_unread
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.sources import (
    Folder,
    ObjectChunk,
    Position,
    Refusal,
    StoredObject,
)
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster_tests.capture.places import PLACES, Place, Written, rows
from mlschool_dagster_tests.capture.samples import NOON, WINDOW, capture, event_ids, label

HOUR = timedelta(hours=1)
NOW = NOON + timedelta(minutes=30)


@pytest.fixture(params=sorted(PLACES), scope="session")
def make_place(request: pytest.FixtureRequest) -> Callable[[Path], Place]:
    return PLACES[request.param]


@pytest.fixture
def place(make_place: Callable[[Path], Place], tmp_path: Path) -> Place:
    return make_place(tmp_path)


def run(place: Place, store: CaptureStore, now: datetime = NOW) -> ImportReport:
    return Importer(place.source, store, lambda: now).run()


def hour(place: Place, after: timedelta = timedelta()) -> str:
    return place.folder(NOON + after)


def test_where_nothing_has_arrived_nothing_is_imported(place: Place, store: CaptureStore) -> None:
    assert not has_unread(place.source, store, NOW)
    report = run(place, store)
    assert (report.objects, report.captures, report.mean_lag) == (0, 0, None)
    assert store.windows() == {}


def test_a_capture_is_imported_as_it_was_made(place: Place, store: CaptureStore) -> None:
    made = [capture("a", timedelta(minutes=7)), capture("b", mass=None), capture("c", HOUR)]
    place.write(f"{hour(place)}/1.jsonl", list[Written](made))
    assert has_unread(place.source, store, NOW)
    report = run(place, store)
    assert (report.objects, report.captures, report.fault_count) == (1, 3, 0)
    kept = [Capture(*row) for row in store.read(WINDOW).itertuples(index=False)]
    assert kept == made[:2]
    assert store.windows() == {WINDOW: 2, Window(WINDOW.end): 1}


def test_what_has_been_read_is_not_read_again(
    place: Place, store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(f"{hour(place)}/1.jsonl", rows("a", 3))
    run(place, store)
    monkeypatch.setattr(type(place.source), "read", lambda *_: pytest.fail("it was read"))
    assert not has_unread(place.source, store, NOW)
    assert run(place, store).objects == 0
    assert event_ids(store) == ["a-0", "a-1", "a-2"]


def test_of_an_object_that_grows_only_what_is_new_is_read(
    place: Place, store: CaptureStore
) -> None:
    if not place.grows:
        pytest.skip("objects are written once")
    name = f"{hour(place)}/1.jsonl"
    place.write(name, rows("a", 2))
    run(place, store)
    place.extend(name, rows("b", 2))
    assert has_unread(place.source, store, NOW)
    report = run(place, store)
    assert (report.captures, report.duplicates) == (2, 0)
    assert event_ids(store) == ["a-0", "a-1", "b-0", "b-1"]


def test_a_late_object_gets_new_numbers_and_touches_its_window(
    place: Place, store: CaptureStore
) -> None:
    place.write(f"{hour(place)}/2.jsonl", rows("on time", 1))
    run(place, store)
    cursor, token = store.captures_since(None).cursor, store.captures_token(WINDOW)
    place.write(f"{hour(place)}/1.jsonl", rows("late", 1))
    run(place, store, NOW + HOUR)
    assert store.captures_since(cursor).windows == {WINDOW}
    assert store.captures_token(WINDOW) != token
    assert event_ids(store) == ["on time-0", "late-0"]


def test_a_bad_line_is_set_aside_and_named_once(place: Place, store: CaptureStore) -> None:
    name = f"{hour(place)}/1.jsonl"
    place.write(name, [capture("a"), None, capture("b")])
    report = run(place, store)
    assert event_ids(store) == ["a", "b"]
    assert [(fault.object_name, fault.line) for fault in report.faults] == [(name, 2)]
    assert run(place, store).faults == []
    count, kept = store.import_faults(place.source.name, NOW, 10)
    assert (count, kept) == (1, report.faults)
    assert store.import_faults(place.source.name, NOW + HOUR, 10) == (0, [])


def test_a_duplicate_is_distinguished_from_a_conflict(place: Place, store: CaptureStore) -> None:
    place.write(f"{hour(place)}/1.jsonl", [capture("a"), capture("a"), capture("b", mass=1)])
    run(place, store)
    place.write(f"{hour(place)}/2.jsonl", [capture("a", mass=2), capture("b", mass=1)])
    report = run(place, store)
    assert (report.captures, report.duplicates) == (0, 1)
    (conflict,) = report.faults
    assert (conflict.object_name, conflict.line) == (f"{hour(place)}/2.jsonl", 1)
    assert "belongs to another row" in conflict.reason
    assert event_ids(store) == ["a", "b"]


def test_what_the_endpoint_itself_kept_is_a_duplicate(place: Place, store: CaptureStore) -> None:
    store.append([capture("a"), capture("a#1")])
    place.write(f"{hour(place)}/1.jsonl", [capture("a#1"), capture("a"), capture("a#2")])
    report = run(place, store)
    assert (report.captures, report.duplicates, report.fault_count) == (1, 2, 0)


def test_a_shadow_is_kept_beside_the_answer(place: Place, store: CaptureStore) -> None:
    place.write(f"{hour(place)}/1.jsonl", [capture("a", role=Role.SHADOW), capture("a", mass=1)])
    assert run(place, store).captures == 2
    assert event_ids(store) == ["a"]
    assert list(store.read_shadow(WINDOW)["event_id"]) == ["a"]


def test_refused_requests_are_counted_by_reason(place: Place, store: CaptureStore) -> None:
    refused = [Refusal(NOON, "unknown column"), Refusal(NOON, "unknown column", 2)]
    later = Refusal(NOON + HOUR, "malformed")
    place.write(f"{hour(place)}/1.jsonl", [*refused, later, capture("a")])
    assert run(place, store).refusals == 4
    run(place, store)
    assert store.refusals(WINDOW) == {"unknown column": 3}
    assert store.refusals(Window(WINDOW.end)) == {"malformed": 1}


def test_labels_arrive_in_the_same_way(place: Place, store: CaptureStore) -> None:
    if not place.has_labels:
        pytest.skip("no labels arrive here")
    place.write(f"{hour(place)}/1.jsonl", [label("a"), None, label("b")])
    place.write(f"{hour(place)}/2.jsonl", [capture("a"), label("a"), capture("b")])
    report = run(place, store)
    assert (report.labels, report.captures, report.fault_count) == (2, 2, 1)
    assert list(store.read_labels(WINDOW)["event_id"]) == ["a", "b"]


def test_reading_goes_on_where_any_chunk_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlschool_dagster.capture.sources.CHUNK_LINES", 2)
    name = f"{hour(place)}/1.jsonl"
    place.write(name, [*rows("a", 3), None, *rows("b", 4)])
    (item,) = objects(place)
    chunks = list(place.source.read(item, Position()))
    assert len(chunks) > 1
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for number, chunk in enumerate(chunks, 1):
        rest = list(place.source.read(item, chunk.end))
        assert content(rest) == content(chunks[number:])
        assert rest[-1].end == chunks[-1].end


def test_an_object_that_has_gone_is_no_error(place: Place) -> None:
    place.write(f"{hour(place)}/1.jsonl", rows("a", 1))
    (item,) = objects(place)
    place.remove(item.name)
    assert list(place.source.read(item, Position())) == []
    assert objects(place) == []


def test_an_object_is_found_however_late_it_comes(place: Place, store: CaptureStore) -> None:
    for hours in range(60):
        place.write(f"{hour(place, -hours * HOUR)}/1.jsonl", rows(f"h{hours}", 1))
    while has_unread(place.source, store, NOW):
        run(place, store)
    assert sum(store.windows().values()) == 60
    place.write(f"{hour(place, -55 * HOUR)}/0.jsonl", rows("late", 1))
    place.write(f"{hour(place, -5000 * HOUR)}/0.jsonl", rows("very late", 1))
    for _ in range(60):
        if has_unread(place.source, store, NOW):
            run(place, store)
    assert "late-0" in {*event_ids(store)}
    assert "very late-0" in {*event_ids(store)}


def test_a_scan_lists_few_folders_however_long_the_history(
    place: Place, store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours in range(0, 24 * 20, 2):
        place.write(f"{hour(place, -hours * HOUR)}/1.jsonl", [])
    for _ in range(5):
        run(place, store)
    listed = []
    entries = type(place.source).entries

    def counting(source: object, folder: str) -> Iterator[StoredObject | Folder]:
        listed.append(folder)
        return entries(source, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(type(place.source), "entries", counting)
    for _ in range(30):
        listed.clear()
        assert not has_unread(place.source, store, NOW)
        assert len(listed) == len(set(listed)) <= 40


def test_importers_at_once_import_each_row_once(
    place: Place, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "BATCH", 5)
    for number in range(20):
        place.write(f"{hour(place)}/{number}.jsonl", [*rows(f"{number}", 3), Refusal(NOON, "odd")])

    def work(_: int) -> None:
        with closing(open_store(uri)) as own:
            while has_unread(place.source, own, NOW):
                run(place, own)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    with closing(open_store(uri)) as store:
        assert store.windows() == {WINDOW: 60}
        assert store.refusals(WINDOW) == {"odd": 20}


class DyingError(Exception):
    """In place of a kill: nothing after it is done."""


def dies_after(store: CaptureStore, commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store die at one of its commits, which it has made or not."""
    keep, left = type(store).append_import, iter(range(commits))

    def append(own: CaptureStore, *arguments: object) -> object:
        if next(left, None) is None:
            raise DyingError
        return keep(own, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "append_import", append)


ROWS = st.lists(st.sampled_from(["new", "known", "bad", "refused", "label"]), max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 3), ROWS),
        st.tuples(st.just("extend"), st.integers(0, 3), ROWS),
        st.tuples(st.just("import"), st.integers(0, 3), st.none()),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=50)
@given(steps=STEPS)
def test_however_writing_and_importing_interleave_each_row_is_imported_once(
    make_place: Callable[[Path], Place],
    fresh_uri: Callable[[Path], str],
    steps: list[tuple[str, int, list[str]]],
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_store(fresh_uri(Path(folder)))) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(importer, "BATCH", 2)
        patch.setattr("mlschool_dagster.capture.sources.CHUNK_LINES", 2)
        place = make_place(Path(folder))
        written: list[str] = []
        counts = {"bad": 0, "refused": 0, "label": 0}
        existing: set[str] = set()
        for what, number, kinds in steps:
            if what == "import":
                with patch.context() as dying:
                    dies_after(store, number, dying)
                    with suppress(DyingError):
                        run(place, store)
                continue
            name = f"{hour(place, -number * HOUR)}/{number}.jsonl"
            if (what == "extend" or name in existing) and not place.grows:
                continue
            lines: list[Written] = []
            for kind in kinds:
                if kind == "new" or (kind == "known" and not written):
                    written.append(f"row {len(written)}")
                    lines.append(capture(written[-1]))
                elif kind == "known":
                    lines.append(capture(written[0]))
                elif kind == "refused":
                    lines.append(Refusal(NOON, "odd"))
                elif kind == "bad":
                    lines.append(None)
                elif place.has_labels:
                    lines.append(label(f"row {counts['label']}"))
                if kind in counts and (kind != "label" or place.has_labels):
                    counts[kind] += 1
            (place.extend if name in existing else place.write)(name, lines)
            existing.add(name)
        while has_unread(place.source, store, NOW):
            run(place, store)
        assert sorted(event_ids(store)) == sorted(written)
        assert store.refusals(WINDOW) == ({"odd": counts["refused"]} if counts["refused"] else {})
        assert store.import_faults(place.source.name, NOON, 100)[0] == counts["bad"]
        known = {f"row {number}" for number in range(counts["label"])} & {*written}
        assert set(store.read_labels(WINDOW)["event_id"]) == known


def objects(place: Place) -> list[StoredObject]:
    """What a scan of everything lists."""
    result: list[StoredObject] = []
    folders = [""]
    while folders:
        for entry in place.source.entries(folders.pop()):
            if isinstance(entry, Folder):
                folders.append(entry.name)
            else:
                result.append(entry)
    return result


def content(chunks: list[ObjectChunk]) -> list[object]:
    """The records and faults of some chunks."""
    return [each for chunk in chunks for each in (*chunk.records, *chunk.faults)]
