"""What becomes of a trouble when its thing is seen again: the rules, without the keeping.

A trouble is told when it begins and when it ends, and in between less and less often. It is about a
thing, such as a check: when several windows are judged, the newest that was in trouble counts. So a
later window that is fine ends it, and so does that very window once it is judged anew; an earlier
one says nothing of how things are now. Nor does one of which nothing can be told: after it things
stand as they stood. A trouble that a later window ended is over for its own windows: judging one
of them again tells nothing new.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from mlschool_dagster.alerting.alert import Condition, Kind, Notice, Observation, one_line

_AFTER = "+"
"""Behind a window's key: later than that window, and before the next."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is known of the thing ``key``, which is or was in trouble.

    ``order`` is that of its newest observation that told something, ``told`` when it was told last,
    after ``reminders`` reminders. What windows before ``window`` say is old: that is the newest one
    in trouble (empty if none was judged), and one just after it once a later window was fine.
    """

    key: str
    order: float
    is_open: bool
    since: datetime
    told: datetime
    reminders: int
    text: str
    severe: bool
    link: str
    window: str


def judge(
    known: Trouble | None, seen: Observation, now: datetime
) -> tuple[Trouble | None, Notice | None]:
    """What is known of the thing from now on, and what is to be told, if anything.

    Judging the same observations again, in the same order, tells nothing more.
    """
    if seen.condition is Condition.UNKNOWN:
        return known, None
    if known is not None and seen.order <= known.order:
        return known, None
    if known is not None and seen.window < known.window and seen.condition is not Condition.EVENT:
        return replace(known, order=seen.order), None
    if seen.condition is Condition.FINE:
        return _fine(known, seen, now)
    if seen.condition is Condition.EVENT:
        return _begun(seen, now, is_open=False), _notice(seen, Kind.EVENT, now)
    if known is None or not known.is_open:
        return _begun(seen, now, is_open=True), _notice(seen, Kind.TROUBLE, now)
    return _seen_again(known, seen, now)


def reminder(trouble: Trouble, now: datetime, every: timedelta) -> tuple[Trouble, Notice] | None:
    """The reminder of a `trouble` that is due, if one is, and the trouble after it.

    The first comes `every` after it was told, each later one after twice as long.
    """
    if not trouble.is_open or now - trouble.told < every * 2**trouble.reminders:
        return None
    text = one_line(f"Still, since {trouble.since:%Y-%m-%d %H:%M} UTC: {trouble.text}")
    notice = Notice(trouble.key, Kind.REMINDER, text, trouble.severe, trouble.link, now)
    return replace(trouble, told=now, reminders=trouble.reminders + 1), notice


def _fine(
    known: Trouble | None, seen: Observation, now: datetime
) -> tuple[Trouble | None, Notice | None]:
    if known is None:
        return None, None
    if not known.is_open:
        return replace(known, order=seen.order), None
    window = known.window if seen.window == known.window else f"{known.window}{_AFTER}"
    over = replace(known, order=seen.order, is_open=False, window=window)
    return over, _notice(seen, Kind.RECOVERY, now)


def _seen_again(known: Trouble, seen: Observation, now: datetime) -> tuple[Trouble, Notice | None]:
    again = _begun(seen, known.since, is_open=True)
    if seen.severe and not known.severe:
        return replace(again, told=now), _notice(seen, Kind.TROUBLE, now)
    return replace(again, told=known.told, reminders=known.reminders), None


def _begun(seen: Observation, now: datetime, *, is_open: bool) -> Trouble:
    return Trouble(
        key=seen.key,
        order=seen.order,
        is_open=is_open,
        since=now,
        told=now,
        reminders=0,
        text=one_line(seen.text),
        severe=seen.severe,
        link=seen.link,
        window=seen.window,
    )


def _notice(seen: Observation, kind: Kind, now: datetime) -> Notice:
    return Notice(seen.key, kind, one_line(seen.text), seen.severe, seen.link, now)
