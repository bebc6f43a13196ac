"""The importer on the platform's own format: odd bytes, odd lines, and a process that is killed."""

import gzip
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture import sources
from mlschool_dagster.capture.importer import Importer, ImportReport, has_unread
from mlschool_dagster.capture.json_lines import JsonLines
from mlschool_dagster.capture.sources import BadLineError, FsspecFiles, first_known
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.capture.places import JsonLinesPlace, PackedPlace, line, rows
from mlschool_dagster_tests.capture.samples import NOON, WINDOW, capture, event_ids
from mlschool_dagster_tests.postgres import PostgresServer

NAME = "1.jsonl"
GOOD = line(capture("a"))


@pytest.fixture
def place(tmp_path: Path) -> JsonLinesPlace:
    return JsonLinesPlace(str(tmp_path / "objects"))


def run(place: JsonLinesPlace, store: CaptureStore) -> ImportReport:
    return Importer(place.source, store, lambda: NOON).run()


def reasons(report: ImportReport) -> list[tuple[int, str]]:
    return [(fault.line, fault.reason) for fault in report.faults]


def test_half_a_line_waits_for_the_rest(place: JsonLinesPlace, store: CaptureStore) -> None:
    content = GOOD + b"\n" + line(capture("b")) + b"\n" + line(capture("c"))
    for end in range(0, len(content), 37):
        place.put(NAME, content[:end])
        assert run(place, store).fault_count == 0
    place.put(NAME, content[:-1])
    run(place, store)
    assert event_ids(store) == ["a", "b"]
    assert store.imported_objects(place.source.name) == (1, 1)
    place.put(NAME, content)
    run(place, store)
    # What is a whole object already does not wait for its end.
    assert event_ids(store) == ["a", "b", "c"]
    assert store.imported_objects(place.source.name) == (1, 0)
    place.put(NAME, b"\nno JSON\n", "ab")
    assert reasons(run(place, store))[0][0] == 4


def test_a_line_of_windows_with_a_mark_and_empty_lines(
    place: JsonLinesPlace, store: CaptureStore
) -> None:
    place.put(NAME, b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + line(capture("b")) + b"\r\n  ")
    assert run(place, store).fault_count == 0
    assert event_ids(store) == ["a", "b"]
    assert store.imported_objects(place.source.name) == (1, 0)


def test_a_line_that_is_too_long_is_named(
    place: JsonLinesPlace, store: CaptureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    monkeypatch.setattr(sources, "BLOCK", 300)
    place.put(NAME, GOOD + b"\n" + b'{"x": "' + b"y" * 5000 + b'"}\n' + line(capture("b")) + b"\n")
    report = run(place, store)
    assert [number for number, _ in reasons(report)] == [2]
    assert event_ids(store) == ["a", "b"]
    place.put(NAME, b"z" * 5000 + GOOD, "ab")
    assert run(place, store).fault_count == 0
    assert store.imported_objects(place.source.name) == (1, 1)


def test_an_object_that_is_shorter_is_read_anew_and_named(
    place: JsonLinesPlace, store: CaptureStore
) -> None:
    place.write(NAME, rows("a", 3))
    run(place, store)
    place.write(NAME, [capture("b")])
    report = run(place, store)
    assert (report.captures, [number for number, _ in reasons(report)]) == (1, [0])
    assert run(place, store).fault_count == 0
    assert event_ids(store) == ["a-0", "a-1", "a-2", "b"]


def test_a_packed_object_that_is_cut_waits_for_the_rest(
    tmp_path: Path, store: CaptureStore
) -> None:
    place = JsonLinesPlace(str(tmp_path / "objects"))
    drawn = random.Random(7)  # so that it cannot be packed to nothing
    packed = gzip.compress(
        b"".join(line(capture(f"{number}-{drawn.random()}")) + b"\n" for number in range(500))
    )
    for share in (0.0, 0.3, 0.3, 0.9, 0.999, 1.0):
        place.put("1.jsonl.gz", packed[: int(share * len(packed))])
        assert run(place, store).fault_count == 0
    assert len(event_ids(store)) == len({*event_ids(store)}) == 500
    place.put("2.jsonl.gz", packed[:200] + b"nonsense" + packed[208:])
    assert run(place, store).fault_count == 1
    place.put("3.jsonl.gz", packed + b"nonsense that is no gzip")
    assert run(place, store).duplicates == 500


def test_what_is_packed_is_known_by_its_content(tmp_path: Path, store: CaptureStore) -> None:
    place = PackedPlace(str(tmp_path / "objects"))
    place.write(NAME, rows("a", 2))
    place.extend(NAME, rows("b", 1))
    run(place, store)
    place.extend(NAME, rows("c", 1))
    assert run(place, store).captures == 1
    assert event_ids(store) == ["a-0", "a-1", "b-0", "c-0"]


def test_what_is_no_object_of_captures_is_ignored(
    place: JsonLinesPlace, store: CaptureStore, tmp_path: Path
) -> None:
    place.write(NAME, [capture("a")])
    folder = tmp_path / "objects"
    for name in ("notes.txt", ".hidden.jsonl", "1.jsonl.tmp", "zero\udcff.jsonl"):
        (folder / name).write_bytes(b"nonsense")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    report = run(place, store)
    assert (report.objects, report.captures, report.fault_count) == (1, 1, 0)


def test_a_folder_that_is_not_there_yet_is_empty(
    place: JsonLinesPlace, store: CaptureStore
) -> None:
    assert not has_unread(place.source, store, NOON)
    place.write(NAME, [capture("a")])
    assert has_unread(place.source, store, NOON)


@pytest.mark.parametrize("uri", ["gopher://host/place", "nonsense+x://y"])
def test_a_scheme_that_nothing_knows_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"MLSCHOOL_CAPTURE_SOURCE has the scheme"):
        FsspecFiles(uri, "MLSCHOOL_CAPTURE_SOURCE")


def test_a_source_is_named_without_its_secrets() -> None:
    assert FsspecFiles("memory://place?token=secret", "X").name == "memory://place"


def altered(**changes: object) -> bytes:
    """A good line with other values, or (None) without them."""
    document = orjson.loads(GOOD) | changes
    return orjson.dumps({key: value for key, value in document.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_id": ...}, "event_id is missing"),
        ({"event_id": ""}, "event_id is no text"),
        ({"event_id": 7}, "event_id is no text"),
        ({"event_id": "x" * 513}, "event_id has more than 512 bytes"),
        ({"event_id": "zero\0"}, "event_id has a zero byte"),
        ({"event_id": ..., "inference_id": "a", "row": -1}, "row is no number"),
        ({"captured_at": ...}, "captured_at is missing"),
        ({"captured_at": "yesterday"}, "captured_at is no time"),
        ({"captured_at": 1700000000}, "captured_at is no time"),
        ({"captured_at": "2026-11-20T12:00:00"}, "captured_at has no zone"),
        ({"captured_at": "1969-11-20T12:00:00Z"}, "captured_at is before 1970"),
        ({"captured_at": "0001-01-01T00:00:00+14:00"}, "captured_at is no time"),
        ({"inputs": [1]}, "inputs is no object"),
        ({"inputs": {"a": [1]}}, "the input 'a' is neither"),
        ({"prediction": 1}, "prediction is no text"),
        ({"probabilities": {"Gentoo": 1.5}}, "probabilities holds"),
        ({"probabilities": [1]}, "probabilities is no object"),
        ({"confidence": ..., "probabilities": ...}, "confidence is missing"),
        ({"confidence": "high"}, "confidence is no number"),
        ({"sampling_share": 0}, "sampling_share is no number"),
        ({"model_version": "../../x"}, "model_version is no number"),
        ({"model_version": ...}, "it has no model_version"),
        ({"role": "king"}, "role is none of"),
        ({"prediction": ..., "label": "x", "labelled_at": 1}, "labelled_at is no time"),
        ({"prediction": ..., "reason": "x", "refused_at": "2026-11-20T12:00Z", "requests": 0},
         "requests is no number"),
        ({"prediction": ...}, "it has none of the keys"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named_with_its_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadLineError) as raised:
        JsonLines("penguins", lambda *_: None)(altered(**changes), NAME)
    assert str(raised.value).startswith(reason)


def test_what_a_line_leaves_open_has_a_default() -> None:
    parse = JsonLines("penguins", first_known(lambda *_: None, lambda name, _: name[0]))
    (read,) = parse(
        altered(
            event_id=..., inference_id="job", row=3, model_version=..., endpoint=..., role=...,
            sampling_share=..., confidence=..., captured_at="2026-11-20T13:00:00+01:00",
        ),
        NAME,
    )  # fmt: skip
    assert read == replace(capture("job-3"), model_version="1")
    (numbered,) = parse(altered(model_version=4), NAME)
    assert numbered == replace(capture("a"), model_version="4")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [*orjson.loads(GOOD), "label", "labelled_at", "source", "reason", "refused_at", "requests"]
)


@given(changes=st.dictionaries(KEYS, JSON, max_size=4))
def test_whatever_a_line_says_it_is_a_record_or_a_fault(changes: dict[str, object]) -> None:
    parse = JsonLines("penguins", lambda *_: "1")
    try:
        (record,) = parse(altered(**changes), NAME)
    except BadLineError:
        return
    assert record is not None


@given(content=st.binary(max_size=300))
def test_no_bytes_end_an_import(content: bytes) -> None:
    place = JsonLinesPlace(f"memory://bytes-{next(NUMBERS)}")
    place.put(NAME, content + b"\n" + GOOD + b"\n")
    (item,) = place.source.entries("")
    assert isinstance(item, sources.StoredObject)
    chunks = list(place.source.read(item, sources.Position()))
    assert chunks[-1].final
    if not content.startswith(b"\x1f\x8b"):
        assert chunks[-1].records[-1][1] == capture("a")


NUMBERS = itertools.count()


def test_a_row_that_the_database_does_not_take_is_a_fault(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """A database that is not in Unicode knows few characters."""
    database = "few_characters"
    postgres.execute(f"CREATE DATABASE {database} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    place = JsonLinesPlace(str(tmp_path / "objects"))
    place.write(
        NAME, [capture("a"), replace(capture("b"), prediction="\u4f01\u9d5d"), capture("c")]
    )
    with closing(open_store(postgres.uri().replace("/postgres", f"/{database}"))) as store:
        report = run(place, store)
        assert reasons(report) == [(2, "the database of the capture store does not take it")]
        assert event_ids(store) == ["a", "c"]


IMPORTING = """
import sys
from datetime import UTC, datetime
from mlschool_dagster.capture import importer
from mlschool_dagster.capture.store import open_store
from mlschool_dagster_tests.capture.places import JsonLinesPlace
importer.BATCH = 20
source = JsonLinesPlace(sys.argv[1]).source
store = open_store(sys.argv[2])
while True:
    importer.Importer(source, store, lambda: datetime.now(UTC)).run()
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_point_imports_each_row_once(
    fresh_uri: Callable[[Path], str], tmp_path: Path
) -> None:
    """While objects are added and grow, the process that imports them dies again and again."""
    place, uri = JsonLinesPlace(str(tmp_path / "objects")), fresh_uri(tmp_path)
    drawn = random.Random(11)
    written, bad = 0, 0
    importing: subprocess.Popen[str] | None = None
    for _ in range(12):
        for number in range(drawn.randrange(1, 6)):
            count = drawn.randrange(60)
            lines = [*rows(f"{written}", count), None]
            place.extend(f"{drawn.choice('abc')}/{number}.jsonl", lines)
            written += count
            bad += 1
        importing = subprocess.Popen(
            [sys.executable, "-c", IMPORTING, place.uri, uri], stdout=subprocess.PIPE, text=True
        )
        wait_for_rows(uri, drawn.randrange(written + 1))
        importing.send_signal(signal.SIGKILL)
        importing.wait()
    with closing(open_store(uri)) as store:
        now = datetime.now(UTC)
        while has_unread(place.source, store, now):
            Importer(place.source, store, lambda: now).run()
        assert store.windows() == {WINDOW: written}
        assert store.import_faults(place.source.name, NOON - timedelta(days=9), 1)[0] == bad


def wait_for_rows(uri: str, count: int) -> None:
    """Until the store holds so many captures."""
    deadline = time.monotonic() + 60
    with closing(open_store(uri)) as store:
        while store.count(WINDOW) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
