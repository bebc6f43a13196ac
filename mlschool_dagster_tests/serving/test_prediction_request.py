"""Names for what the endpoint answers: UUIDs that are unique and in order of time."""

import os
import time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.serving.parsing import MAX_ROWS
from mlschool_dagster.serving.prediction_request import new_event_ids


@given(st.integers(1, MAX_ROWS))
def test_names_of_one_request_are_uuids_of_version_7_in_order(count: int) -> None:
    names = new_event_ids(count)
    assert len(set(names)) == count
    assert sorted(names) == names
    for name in (names[0], names[-1]):
        assert (str(UUID(name)), UUID(name).version) == (name, 7)


def test_requests_of_the_same_moment_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    names = [name for _ in range(2000) for name in new_event_ids(5)]
    assert len(set(names)) == len(names)


def test_counting_up_leaves_no_name_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\xff" * size)
    names = new_event_ids(MAX_ROWS)
    assert {len(name) for name in names} == {36}
    assert sorted(names) == names


def test_a_later_request_has_a_later_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_event_ids(1)[0]
    later = time.time_ns() + 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert new_event_ids(1)[0] > before
