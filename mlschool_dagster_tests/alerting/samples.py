"""Observations and notices for tests."""

from datetime import UTC, datetime, timedelta

from mlschool_dagster.alerting.alert import Condition, Kind, Notice, Observation

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def seen(
    condition: Condition, order: float, key: str = "check", window: str = "", severe: bool = False
) -> Observation:
    text = f"{key} {window} {condition}".replace("  ", " ")
    return Observation(key, order, condition, text, severe=severe, window=window)


def trouble(order: float, key: str = "check", window: str = "") -> Observation:
    return seen(Condition.TROUBLE, order, key, window)


def fine(order: float, key: str = "check", window: str = "") -> Observation:
    return seen(Condition.FINE, order, key, window)


def unknown(order: float, key: str = "check", window: str = "") -> Observation:
    return seen(Condition.UNKNOWN, order, key, window)


def notice(text: str = "Something broke.", kind: Kind = Kind.TROUBLE, link: str = "") -> Notice:
    return Notice("key", kind, text, severe=True, link=link, at=NOW)
