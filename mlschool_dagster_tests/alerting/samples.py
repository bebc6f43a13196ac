"""Signals and notifications for tests."""

from datetime import UTC, datetime, timedelta

from mlschool_dagster.alerting.incidents import Condition, Notification, NotificationKind, Signal

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def make_signal(
    condition: Condition, order: float, key: str = "check", window: str = "", severe: bool = False
) -> Signal:
    text = f"{key} {window} {condition}".replace("  ", " ")
    return Signal(key, order, condition, text, severe=severe, window=window)


def firing(order: float, key: str = "check", window: str = "") -> Signal:
    return make_signal(Condition.FIRING, order, key, window)


def ok(order: float, key: str = "check", window: str = "") -> Signal:
    return make_signal(Condition.OK, order, key, window)


def undecided(order: float, key: str = "check", window: str = "") -> Signal:
    return make_signal(Condition.UNDECIDED, order, key, window)


def notification(
    text: str = "Something broke.", kind: NotificationKind = NotificationKind.FIRING, link: str = ""
) -> Notification:
    return Notification("key", kind, text, severe=True, link=link, at=NOW)
