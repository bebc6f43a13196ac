"""State machine of one incident: from signals to notifications, without storage.

Notify when an incident starts firing, when it resolves, and with back-off in between. An incident
is about one subject, such as an asset check. Where a check judges windows, the newest window that
fired counts: a later window that is OK resolves the incident, and so does the same window when it
is judged again; an earlier window says nothing about the present. An undecided signal neither opens
nor resolves an incident. Once a later window has resolved an incident, judging its own windows
again notifies nobody.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from mlschool_dagster.credentials import scrub

TEXT_LENGTH = 500
"""Most characters of a notification's text; every channel takes as many."""
_AFTER = "+"
"""Appended to a window's key: sorts after that window, and before the next one."""


class Condition(StrEnum):
    """The condition of a subject, as one signal reports it."""

    FIRING = "firing"
    """Something is wrong, until an OK signal comes."""
    OK = "ok"
    UNDECIDED = "undecided"
    """Too little is known: neither opens nor resolves an incident."""
    EVENT = "event"
    """Something happened that people should know, and that nothing resolves."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One observation of the subject named ``key``.

    ``order`` increases from one signal of a subject to the next (seconds since 1970, for example);
    a signal whose order is not above the incident's is a duplicate and is ignored. ``window`` is
    the key of the window that was judged, empty if there is none. ``text`` is a sentence; ``link``
    the address of the evidence, or empty. Incidents with the same ``cause`` are notified as one;
    empty: the incident belongs to no group.
    """

    key: str
    order: float
    condition: Condition
    text: str
    severe: bool = False
    link: str = ""
    window: str = ""
    cause: str = ""


class NotificationKind(StrEnum):
    """What a notification reports."""

    FIRING = "firing"
    REMINDER = "reminder"
    RESOLVED = "resolved"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class Notification:
    """A message about the subject ``key``, as of ``at`` (timezone-aware)."""

    key: str
    kind: NotificationKind
    text: str
    severe: bool
    link: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Incident:
    """The state of the subject ``key``, which is or was firing.

    ``order`` is the order of its newest decided signal; ``notified_at`` the time of its last
    notification, after ``reminders`` reminders. Signals of windows before ``window`` are outdated:
    it is the newest window that fired (empty without windows), or just after it once a later window
    was OK.
    """

    key: str
    order: float
    is_open: bool
    since: datetime
    notified_at: datetime
    reminders: int
    text: str
    severe: bool
    link: str
    window: str


def update_incident(
    known: Incident | None, signal: Signal, now: datetime
) -> tuple[Incident | None, Notification | None]:
    """Apply `signal`: the incident after it, and the notification that it causes, if any.

    Idempotent: applying the same signals again, in the same order, causes no notification.
    """
    if signal.condition is Condition.UNDECIDED:
        return known, None
    if known is not None and signal.order <= known.order:
        return known, None
    outdated = known is not None and signal.window < known.window
    if known is not None and outdated and signal.condition is not Condition.EVENT:
        return replace(known, order=signal.order), None
    if signal.condition is Condition.OK:
        return _resolve(known, signal, now)
    if signal.condition is Condition.EVENT:
        event = _notification(signal, NotificationKind.EVENT, now)
        return _incident(signal, now, is_open=False), event
    if known is None or not known.is_open:
        firing = _notification(signal, NotificationKind.FIRING, now)
        return _incident(signal, now, is_open=True), firing
    return _fire_again(known, signal, now)


def due_reminder(
    incident: Incident, now: datetime, every: timedelta
) -> tuple[Incident, Notification] | None:
    """The incident after the reminder that is due at `now`, and the reminder; None if none is due.

    The first comes `every` after the first notification, each later one after twice as long.
    """
    if not incident.is_open or now - incident.notified_at < every * 2**incident.reminders:
        return None
    text = one_line(f"Still, since {incident.since:%Y-%m-%d %H:%M} UTC: {incident.text}")
    notification = Notification(
        incident.key, NotificationKind.REMINDER, text, incident.severe, incident.link, now
    )
    return replace(incident, notified_at=now, reminders=incident.reminders + 1), notification


def one_line(text: str) -> str:
    """`text` on one line of at most `TEXT_LENGTH` characters, storable and free of secrets."""
    valid = text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
    line = scrub(" ".join(valid.split()))
    return line if len(line) <= TEXT_LENGTH else f"{line[: TEXT_LENGTH - 1]}…"


def _resolve(
    known: Incident | None, signal: Signal, now: datetime
) -> tuple[Incident | None, Notification | None]:
    if known is None:
        return None, None
    if not known.is_open:
        return replace(known, order=signal.order), None
    window = known.window if signal.window == known.window else f"{known.window}{_AFTER}"
    resolved = replace(known, order=signal.order, is_open=False, window=window)
    return resolved, _notification(signal, NotificationKind.RESOLVED, now)


def _fire_again(
    known: Incident, signal: Signal, now: datetime
) -> tuple[Incident, Notification | None]:
    again = _incident(signal, known.since, is_open=True)
    if signal.severe and not known.severe:
        firing = _notification(signal, NotificationKind.FIRING, now)
        return replace(again, notified_at=now), firing
    return replace(again, notified_at=known.notified_at, reminders=known.reminders), None


def _incident(signal: Signal, now: datetime, *, is_open: bool) -> Incident:
    return Incident(
        key=signal.key,
        order=signal.order,
        is_open=is_open,
        since=now,
        notified_at=now,
        reminders=0,
        text=one_line(signal.text),
        severe=signal.severe,
        link=signal.link,
        window=signal.window,
    )


def _notification(signal: Signal, kind: NotificationKind, now: datetime) -> Notification:
    return Notification(signal.key, kind, one_line(signal.text), signal.severe, signal.link, now)
