"""The log keeps what it was given, in order, whatever its writers die of and the disk does."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.store import Appended
from mlschool_dagster.serving import write_ahead_log as wal_module
from mlschool_dagster.serving.write_ahead_log import (
    AnswerCache,
    WriteAheadLog,
    WriteAheadLogFullError,
    captures_of,
    size_of_all,
)
from mlschool_dagster_tests.capture.samples import capture

PLENTY = 1024**2


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_module, "SEGMENT_BYTES", 600)


@pytest.fixture
def wals(tmp_path: Path) -> Iterator[list[WriteAheadLog]]:
    """Three workers' views of one log."""
    views = [WriteAheadLog(tmp_path, PLENTY) for _ in range(3)]
    yield views
    for view in views:
        view.close()


def filled(folder: Path, event_ids: str = "abc") -> Path:
    """The last segment of a write-ahead log whose worker is gone."""
    wal = WriteAheadLog(folder, PLENTY)
    for event_id in event_ids:
        wal.append([capture(event_id)])
    wal.close()
    return max(folder.glob("*.jsonl"))


def taken_out(folder: Path) -> list[str]:
    """What is read of the write-ahead log in `folder`, which is empty then."""
    wal = WriteAheadLog(folder, PLENTY)
    with wal.replaying() as is_ours:
        assert is_ours
        events = [c.event_id for c in wal.oldest(1000)]
        with wal.exclusive():
            wal.end()
    wal.close()
    assert not list(folder.glob("**/*.jsonl")) or (folder / "damaged").exists()
    return events


def test_captures_come_out_as_they_went_in(tmp_path: Path) -> None:
    wal = WriteAheadLog(tmp_path, PLENTY)
    written = [
        capture("a", timedelta(microseconds=7)),
        capture("a", role=Role.SHADOW),
        capture("b", sampling_share=0.25, mass=None),
    ]
    waiting = [wal.is_waiting]
    wal.append(written)
    assert [*waiting, wal.is_waiting] == [False, True]
    assert wal.oldest(10) == written
    wal.close()


@pytest.mark.usefixtures("small_segments")
def test_what_is_not_forgotten_is_reported_again(tmp_path: Path) -> None:
    wal = WriteAheadLog(tmp_path, PLENTY)
    for number in range(10):
        wal.append([capture(str(number))])
    assert len(list(tmp_path.glob("*.jsonl"))) > 2
    assert [c.event_id for c in wal.oldest(4)] == list("0123")
    assert [c.event_id for c in wal.oldest(4)] == list("0123")
    before = wal.size
    wal.checkpoint()
    assert wal.size < before
    wal.append([capture("10")])
    assert [c.event_id for c in wal.oldest(100)] == [*"456789", "10"]
    wal.close()


@pytest.mark.usefixtures("small_segments")
def test_workers_write_in_turn_and_each_knows_what_the_others_answered(
    wals: list[WriteAheadLog],
) -> None:
    for number in range(30):
        assert not wals[number % 3].append([capture(str(number))]).duplicates
    for number in range(30):
        again = wals[(number + 1) % 3].append([capture(str(number), timedelta(minutes=1))])
        assert again.duplicates == {str(number): capture(str(number))}
        assert wals[(number + 2) % 3].append([capture(str(number), mass=1)]).conflicts
    assert [c.event_id for c in wals[0].oldest(100)] == [str(i) for i in range(30)]


def test_only_one_worker_takes_out_at_a_time_and_the_others_go_on_behind_it(
    wals: list[WriteAheadLog],
) -> None:
    one, other, third = wals
    one.append([capture("a")])
    other.append([capture("b")])
    with one.replaying() as is_ours, other.replaying() as is_theirs:
        assert (is_ours, is_theirs) == (True, False)
        assert [c.event_id for c in one.oldest(10)] == ["a", "b"]
        one.checkpoint()
        with one.exclusive():
            one.end()
    assert not other.is_waiting
    for wal in wals:
        wal.append([capture(f"again by {wals.index(wal)}")])
    assert third.is_waiting
    with third.replaying() as is_ours:
        assert is_ours
        assert len(third.oldest(10)) == 3


def test_a_turn_is_not_waited_for_for_ever(
    wals: list[WriteAheadLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_module, "PATIENCE_SECONDS", 0.05)
    with wals[0].exclusive(), pytest.raises(TimeoutError):
        wals[1].append([capture("a")])
    assert wals[1].append([capture("a")]) == Appended({}, frozenset())


def test_a_torn_tail_is_ignored_and_nothing_is_written_behind_it(tmp_path: Path) -> None:
    segment = filled(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-10])
    filled(tmp_path, "def")
    assert taken_out(tmp_path) == list("abdef")
    assert not (tmp_path / "damaged").exists()


@pytest.mark.usefixtures("small_segments")
def test_what_is_damaged_is_kept_aside_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segment = filled(tmp_path, "abcdef")
    content = segment.read_bytes()
    damaged = content.replace(b"Biscoe", b"Bisc\xffe", 1)
    segment.write_bytes(damaged)
    lost = json.loads(content.splitlines()[0].partition(b" ")[2].partition(b"\t")[0])[0]["event_id"]
    assert taken_out(tmp_path) == [event for event in "abcdef" if event != lost]
    assert "damaged" in caplog.text
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.read_bytes() == damaged


@pytest.mark.usefixtures("small_segments")
def test_it_does_not_outgrow_its_limit(tmp_path: Path) -> None:
    filled(tmp_path, "abcdef")
    wal = WriteAheadLog(tmp_path, limit_bytes=4000)
    kept = []
    with pytest.raises(WriteAheadLogFullError):
        for number in range(20):
            wal.append([capture(str(number))])
            kept.append(str(number))
    assert 0 < len(kept) < 20
    assert size_of_all(tmp_path) == wal.size <= 4000
    assert [c.event_id for c in wal.oldest(100)] == [*"abcdef", *kept]
    wal.close()


def test_failing_to_begin_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = WriteAheadLog(tmp_path, PLENTY)
    before, descriptors = sorted(tmp_path.rglob("*")), len(list(Path("/dev/fd").iterdir()))
    really = os.open

    def no_more(*arguments: object, **options: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_more)
    for _ in range(50):
        with pytest.raises(OSError, match="Too many open files"):
            wal.append([capture("a")])
    monkeypatch.setattr(os, "open", really)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(list(Path("/dev/fd").iterdir())) == descriptors
    wal.append([capture("a")])
    wal.close()
    assert taken_out(tmp_path) == ["a"]


@pytest.mark.parametrize("attempt", range(4))
def test_whatever_cannot_be_opened_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """The locks, the segment, the folder that is synchronised: one of them, each time."""
    really, opened = os.open, [0]

    def scarce(*arguments: Any, **options: Any) -> int:
        opened[0] += 1
        if opened[0] == attempt + 1:
            raise OSError(24, "Too many open files")
        return really(*arguments, **options)

    before = len(list(Path("/dev/fd").iterdir()))
    monkeypatch.setattr(os, "open", scarce)
    for _ in range(2):
        with suppress(OSError):
            wal = WriteAheadLog(tmp_path, PLENTY)
            with suppress(OSError):
                wal.append([capture("a")])
            wal.close()
    monkeypatch.setattr(os, "open", really)
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert taken_out(tmp_path) == ["a"]


def test_what_no_store_takes_is_kept_aside_as_it_is(tmp_path: Path) -> None:
    wal = WriteAheadLog(tmp_path, PLENTY)
    wal.set_aside([capture("a")], "too odd")
    (aside,) = (tmp_path / "refused").iterdir()
    assert captures_of(aside.read_bytes()) == [capture("a")]
    wal.close()


def test_an_attempt_counts_until_something_else_was_answered(tmp_path: Path) -> None:
    """However the lines of several workers are mixed, and in whatever order they are read."""
    key = ("a", False)
    one, other, third = (AnswerCache(tmp_path) for _ in range(3))
    first, second = capture("a"), capture("a", mass=1)
    assert one.attempt([first]) is not None
    assert third.find([key]) == {key: first}
    attempt = other.attempt([second])
    assert attempt is not None
    assert other.find([key]) == {key: first}
    one.attempt([first])
    assert other.confirm(attempt)
    one.attempt([first])
    for answers in (one, other, third, AnswerCache(tmp_path)):
        assert answers.find([key]) == {key: second}
        answers.close()


def test_an_attempt_counts_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Rows of several attempts, or of an attempt and an answer, are never one request."""
    keys = [(f"{name}{row}", False) for name in "ab" for row in ("", "#1", "#2")]
    one, other = AnswerCache(tmp_path), AnswerCache(tmp_path)
    one.add([capture("a")])
    other.attempt([capture("a"), capture("a#1", mass=1), capture("b"), capture("b#1", mass=1)])
    assert one.find(keys) == {keys[0]: capture("a"), keys[3]: capture("b")} | {
        keys[4]: capture("b#1", mass=1)
    }
    newest = other.attempt([capture("b", mass=2)])
    assert one.find(keys) == {keys[0]: capture("a"), keys[3]: capture("b", mass=2)}
    other.retract(newest)
    assert one.find(keys).keys() == {keys[0], keys[3], keys[4]}
    one.close()
    other.close()


@pytest.mark.usefixtures("small_segments")
def test_an_attempt_whose_file_is_no_longer_written_to_is_not_confirmed(tmp_path: Path) -> None:
    answers = AnswerCache(tmp_path)
    attempts = [answers.attempt([capture(str(number))]) for number in range(9)]
    assert attempts[0] is not None
    assert attempts[-1] is not None
    assert not answers.confirm(attempts[0])
    assert answers.confirm(attempts[-1])
    attempts[-1].path.unlink()
    assert not answers.confirm(attempts[-1])
    answers.close()


def test_answers_are_remembered_by_all_workers(tmp_path: Path) -> None:
    one, other = AnswerCache(tmp_path), AnswerCache(tmp_path)
    one.add([capture("a"), capture("a#1")])
    other.add([capture("b", mass=1)])
    keys = [("a", False), ("a#1", False), ("b", False), ("c", False)]
    for answers in (one, other, AnswerCache(tmp_path)):
        result = answers.find(keys)
        assert result == {
            keys[0]: capture("a"),
            keys[1]: capture("a#1"),
            keys[2]: capture("b", mass=1),
        }
    other.add([capture("c")])
    assert one.find(keys[3:]) == {keys[3]: capture("c")}


@pytest.mark.usefixtures("small_segments")
def test_answers_are_bounded_and_the_last_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_module, "ANSWERS_BYTES", 6000)
    one, other = AnswerCache(tmp_path), AnswerCache(tmp_path)
    for number in range(40):
        (one, other)[number % 2].add([capture(str(number))])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 6000 + 600
    result = one.find([(str(number), False) for number in range(40)])
    assert len(result) > 5
    assert ("39", False) in result
    assert ("0", False) not in result


@given(garbage=st.binary(max_size=200))
def test_a_damaged_memory_is_no_answer(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    answers = AnswerCache(folder)
    answers.add([capture("a")])
    (folder / "zz.answers").write_bytes(garbage + b'\n0 []\t[["b"],[]]\n')
    answers.add([capture("c")])
    result = answers.find([("a", False), ("b", False), ("c", False)])
    assert result == {("a", False): capture("a"), ("c", False): capture("c")}
    answers.close()
