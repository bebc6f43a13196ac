"""State machine of one incident: what it notifies, and what another window means for it."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.alerting.incidents import (
    TEXT_LENGTH,
    Condition,
    Incident,
    Notification,
    NotificationKind,
    Signal,
    due_reminder,
    one_line,
    update_incident,
)
from mlschool_dagster_tests.alerting.samples import DAY, NOW, firing, make_signal, ok, undecided

OLD, NEW, NEWEST = "2026-11-20-10:00", "2026-11-20-11:00", "2026-11-20-12:00"

histories = st.lists(
    st.builds(
        make_signal,
        st.sampled_from(Condition),
        st.just(0.0),
        window=st.sampled_from(["", OLD, NEW, NEWEST]),
        severe=st.booleans(),
    ),
    max_size=12,
).map(lambda found: [_at(order, signal) for order, signal in enumerate(found, 1)])


def _at(order: float, signal: Signal) -> Signal:
    return make_signal(signal.condition, order, window=signal.window, severe=signal.severe)


def apply(
    signals: Sequence[Signal], known: Incident | None = None
) -> tuple[list[Notification], Incident | None]:
    """The notifications that the signals cause, and the incident after them."""
    notifications = []
    for signal in signals:
        known, notification = update_incident(known, signal, NOW)
        notifications += [notification] if notification else []
    return notifications, known


def kinds(*signals: Signal) -> list[NotificationKind]:
    return [notification.kind for notification in apply(signals)[0]]


def test_an_incident_is_notified_when_it_fires_and_when_it_resolves() -> None:
    assert kinds(firing(1), firing(2), ok(3), ok(4), firing(5)) == [
        NotificationKind.FIRING,
        NotificationKind.RESOLVED,
        NotificationKind.FIRING,
    ]


def test_what_never_fired_is_not_notified() -> None:
    assert apply([ok(1), ok(2)]) == ([], None)


def test_a_warning_that_becomes_severe_is_notified_again() -> None:
    severe = make_signal(Condition.FIRING, 2, severe=True)
    assert kinds(firing(1), severe, firing(3)) == [NotificationKind.FIRING, NotificationKind.FIRING]


def test_an_event_is_notified_and_nothing_resolves_it() -> None:
    event = make_signal(Condition.EVENT, 2)
    assert kinds(firing(1), event, ok(3)) == [NotificationKind.FIRING, NotificationKind.EVENT]


def test_undecided_signals_of_quiet_nights_neither_fire_nor_resolve() -> None:
    nights = [undecided(1), firing(2), undecided(3), firing(4), undecided(5), ok(6), undecided(7)]
    assert kinds(*nights) == [NotificationKind.FIRING, NotificationKind.RESOLVED]


@given(histories)
def test_undecided_signals_change_nothing(signals: list[Signal]) -> None:
    decided = [signal for signal in signals if signal.condition is not Condition.UNDECIDED]
    assert apply(signals) == apply(decided)


@pytest.mark.parametrize(("passing", "recovers"), [(OLD, False), (NEW, True), (NEWEST, True)])
def test_the_newest_window_that_fired_or_a_later_one_resolves(passing: str, recovers: bool) -> None:
    signals = [firing(1, window=NEW), firing(2, window=OLD), ok(3, window=passing)]
    assert (NotificationKind.RESOLVED in kinds(*signals)) is recovers


def test_an_old_window_with_late_labels_fires_though_a_newer_one_passed() -> None:
    assert kinds(ok(1, window=NEW), firing(2, window=OLD)) == [NotificationKind.FIRING]


@given(histories)
def test_applying_the_same_signals_again_notifies_nobody(signals: list[Signal]) -> None:
    _, known = apply(signals)
    if known is not None:
        assert apply(signals, known) == ([], known)


@given(histories)
def test_firing_and_resolved_alternate(signals: list[Signal]) -> None:
    notifications, known = apply(signals)
    is_open = False
    for found in notifications:
        if found.kind is NotificationKind.RESOLVED:
            assert is_open
        is_open = found.kind is NotificationKind.FIRING
    assert is_open is bool(known and known.is_open)


def test_reminders_come_less_and_less_often() -> None:
    _, known = apply([firing(1)])
    assert known is not None
    reminded = []
    for hour in range(24 * 20):
        due = due_reminder(known, NOW + timedelta(hours=hour), DAY)
        if due:
            known, notification = due
            reminded.append((hour // 24, notification.text))
    assert reminded == [
        (day, "Still, since 2026-11-21 08:00 UTC: check firing") for day in (1, 3, 7, 15)
    ]


def test_a_resolved_incident_causes_no_reminder() -> None:
    _, known = apply([firing(1), ok(2)])
    assert known is not None
    assert due_reminder(known, NOW + 9 * DAY, DAY) is None


@given(st.text(st.characters(), max_size=2 * TEXT_LENGTH))
def test_a_text_becomes_one_bounded_line_that_can_be_stored(text: str) -> None:
    line = one_line(text)
    assert len(line) <= TEXT_LENGTH
    assert len(line.splitlines()) <= 1
    assert "\0" not in line
    line.encode()


def test_a_window_judged_again_after_a_later_one_was_ok_notifies_nobody() -> None:
    again = [firing(1, window=OLD), ok(2, window=NEWEST), firing(3, window=OLD)]
    assert kinds(*again) == [NotificationKind.FIRING, NotificationKind.RESOLVED]
    # A window between them fires anew; so does the very window that resolved the incident.
    assert kinds(*again, firing(4, window=NEW))[2:] == [NotificationKind.FIRING]
    assert kinds(firing(1, window=OLD), ok(2, window=OLD), firing(3, window=OLD))[2:] == [
        NotificationKind.FIRING
    ]
