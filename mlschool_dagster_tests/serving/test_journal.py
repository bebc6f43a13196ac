"""The journal keeps what it was given, in order, whatever its owner dies of and the disk does."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.capture.store import Appended
from mlschool_dagster.serving import journal as journal_module
from mlschool_dagster.serving.journal import Journal, JournalFullError
from mlschool_dagster_tests.capture.samples import capture

PLENTY = 1024**2


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 600)


def dead_owner(home: Path, event_ids: str = "abc") -> Path:
    """The last segment of a journal whose owner is gone."""
    journal = Journal.begin(home, PLENTY)
    for event_id in event_ids:
        journal.append([capture(event_id)])
    journal.close()
    return max(home.glob("*.journal/*.jsonl"))


def adopted(home: Path) -> list[str]:
    """What is read of the one journal in `home`, which is gone then."""
    journal = Journal.adopt(home, PLENTY)
    assert journal is not None
    events = [c.event_id for c in journal.oldest(1000)]
    journal.discard()
    assert Journal.adopt(home, PLENTY) is None
    assert not list(home.glob("*.journal"))
    return events


def test_captures_come_out_as_they_went_in(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, PLENTY)
    written = [
        capture("a", timedelta(microseconds=7)),
        capture("a", role=Role.SHADOW),
        capture("b", sampling_share=0.25, mass=None),
    ]
    journal.append(written)
    assert journal.oldest(10) == written
    journal.discard()


@pytest.mark.usefixtures("small_segments")
def test_what_is_not_forgotten_is_told_again(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, PLENTY)
    for number in range(10):
        journal.append([capture(str(number))])
    assert len(list(tmp_path.glob("*/*.jsonl"))) > 2
    assert [c.event_id for c in journal.oldest(4)] == list("0123")
    assert [c.event_id for c in journal.oldest(4)] == list("0123")
    before = journal.size
    journal.forget()
    assert journal.size < before
    journal.append([capture("10")])
    assert [c.event_id for c in journal.oldest(100)] == [*"456789", "10"]
    journal.discard()


def test_a_repeated_event_gives_back_its_first_capture(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, PLENTY)
    journal.append([capture("a"), capture("b")])
    size = journal.size
    again = journal.append([capture("a", timedelta(minutes=1))])
    assert again == Appended({"a": capture("a")}, frozenset())
    assert journal.append([capture("c"), capture("b", mass=1)]).refused == {"b"}
    assert journal.size == size
    assert [c.event_id for c in journal.oldest(10)] == ["a", "b"]
    journal.discard()


def test_a_living_owner_keeps_its_journal(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, PLENTY)
    journal.append([capture("a")])
    assert Journal.adopt(tmp_path, PLENTY) is None
    journal.close()
    assert adopted(tmp_path) == ["a"]


def test_a_torn_tail_is_ignored(tmp_path: Path) -> None:
    segment = dead_owner(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-10])
    assert adopted(tmp_path) == ["a", "b"]
    assert not (tmp_path / "damaged").exists()


@pytest.mark.usefixtures("small_segments")
def test_what_is_damaged_is_kept_aside_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segment = dead_owner(tmp_path, "abcdef")
    content = segment.read_bytes()
    damaged = content.replace(b"Biscoe", b"Bisc\xffe", 1)
    segment.write_bytes(damaged)
    lost = json.loads(content.splitlines()[0].partition(b" ")[2])[0]["event_id"]
    assert adopted(tmp_path) == [event for event in "abcdef" if event != lost]
    assert "damaged" in caplog.text
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.read_bytes() == damaged


@pytest.mark.usefixtures("small_segments")
def test_all_journals_of_a_folder_share_one_limit(tmp_path: Path) -> None:
    dead_owner(tmp_path, "abcdef")
    journal = Journal.begin(tmp_path, limit_bytes=3000)
    kept = []
    with pytest.raises(JournalFullError):
        for number in range(10):
            journal.append([capture(str(number))])
            kept.append(str(number))
    assert 0 < len(kept) < 10
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.jsonl")) <= 3000
    assert [c.event_id for c in journal.oldest(100)] == kept
    journal.discard()
