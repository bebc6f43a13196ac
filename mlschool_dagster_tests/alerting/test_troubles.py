"""The rules: what is told of a trouble, and what it means when another window is judged."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.alerting.alert import (
    TEXT_LENGTH,
    Condition,
    Kind,
    Notice,
    Observation,
    one_line,
)
from mlschool_dagster.alerting.troubles import Trouble, judge, reminder
from mlschool_dagster_tests.alerting.samples import DAY, NOW, fine, seen, trouble, unknown

OLD, NEW, NEWEST = "2026-11-20-10:00", "2026-11-20-11:00", "2026-11-20-12:00"

histories = st.lists(
    st.builds(
        seen,
        st.sampled_from(Condition),
        st.just(0.0),
        window=st.sampled_from(["", OLD, NEW, NEWEST]),
        severe=st.booleans(),
    ),
    max_size=12,
).map(lambda found: [_at(order, observation) for order, observation in enumerate(found, 1)])


def _at(order: float, observation: Observation) -> Observation:
    return seen(observation.condition, order, window=observation.window, severe=observation.severe)


def told(
    observations: Sequence[Observation], known: Trouble | None = None
) -> tuple[list[Notice], Trouble | None]:
    """What is told of the observations, and what is known at the end."""
    notices = []
    for observation in observations:
        known, notice = judge(known, observation, NOW)
        notices += [notice] if notice else []
    return notices, known


def kinds(*observations: Observation) -> list[Kind]:
    return [notice.kind for notice in told(observations)[0]]


def test_a_trouble_is_told_when_it_begins_and_when_it_ends() -> None:
    assert kinds(trouble(1), trouble(2), fine(3), fine(4), trouble(5)) == [
        Kind.TROUBLE,
        Kind.RECOVERY,
        Kind.TROUBLE,
    ]


def test_what_was_never_in_trouble_is_not_told() -> None:
    assert told([fine(1), fine(2)]) == ([], None)


def test_a_warning_that_becomes_severe_is_told_again() -> None:
    severe = seen(Condition.TROUBLE, 2, severe=True)
    assert kinds(trouble(1), severe, trouble(3)) == [Kind.TROUBLE, Kind.TROUBLE]


def test_an_event_is_told_and_nothing_recovers_from_it() -> None:
    event = seen(Condition.EVENT, 2)
    assert kinds(trouble(1), event, fine(3)) == [Kind.TROUBLE, Kind.EVENT]


def test_quiet_nights_in_which_nothing_can_be_told_neither_alarm_nor_calm() -> None:
    nights = [unknown(1), trouble(2), unknown(3), trouble(4), unknown(5), fine(6), unknown(7)]
    assert kinds(*nights) == [Kind.TROUBLE, Kind.RECOVERY]


@given(histories)
def test_what_cannot_be_told_changes_nothing(observations: list[Observation]) -> None:
    decided = [seen for seen in observations if seen.condition is not Condition.UNKNOWN]
    assert told(observations) == told(decided)


@pytest.mark.parametrize(("passing", "recovers"), [(OLD, False), (NEW, True), (NEWEST, True)])
def test_the_newest_window_in_trouble_or_a_later_one_ends_it(passing: str, recovers: bool) -> None:
    observations = [trouble(1, window=NEW), trouble(2, window=OLD), fine(3, window=passing)]
    assert (Kind.RECOVERY in kinds(*observations)) is recovers


def test_an_old_window_whose_labels_came_late_is_told_though_a_newer_one_passed() -> None:
    assert kinds(fine(1, window=NEW), trouble(2, window=OLD)) == [Kind.TROUBLE]


@given(histories)
def test_seeing_the_same_again_tells_nothing(observations: list[Observation]) -> None:
    _, known = told(observations)
    if known is not None:
        assert told(observations, known) == ([], known)


@given(histories)
def test_beginnings_and_ends_alternate(observations: list[Observation]) -> None:
    notices, known = told(observations)
    is_open = False
    for found in notices:
        if found.kind is Kind.RECOVERY:
            assert is_open
        is_open = found.kind is Kind.TROUBLE
    assert is_open is bool(known and known.is_open)


def test_reminders_come_less_and_less_often() -> None:
    _, known = told([trouble(1)])
    assert known is not None
    reminded = []
    for hour in range(24 * 20):
        due = reminder(known, NOW + timedelta(hours=hour), DAY)
        if due:
            known, notice = due
            reminded.append((hour // 24, notice.text))
    assert reminded == [
        (day, "Still, since 2026-11-21 08:00 UTC: check trouble") for day in (1, 3, 7, 15)
    ]


def test_nobody_is_reminded_of_what_is_over() -> None:
    _, known = told([trouble(1), fine(2)])
    assert known is not None
    assert reminder(known, NOW + 9 * DAY, DAY) is None


@given(st.text(st.characters(), max_size=2 * TEXT_LENGTH))
def test_a_notice_is_one_bounded_line_that_can_be_written_down(text: str) -> None:
    line = one_line(text)
    assert len(line) <= TEXT_LENGTH
    assert len(line.splitlines()) <= 1
    assert "\0" not in line
    line.encode()


def test_a_window_judged_again_after_a_later_one_was_fine_is_no_news() -> None:
    again = [trouble(1, window=OLD), fine(2, window=NEWEST), trouble(3, window=OLD)]
    assert kinds(*again) == [Kind.TROUBLE, Kind.RECOVERY]
    # One between them, of which nothing was known, is news; and so is the very one that ended it.
    assert kinds(*again, trouble(4, window=NEW))[2:] == [Kind.TROUBLE]
    assert kinds(trouble(1, window=OLD), fine(2, window=OLD), trouble(3, window=OLD))[2:] == [
        Kind.TROUBLE
    ]
