"""Entries of a ledger, as the sensors and jobs would write them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from mlschool_dagster.promotion.rollout import Entry, Step

BEGINNING = datetime(2026, 11, 20, 12, tzinfo=UTC)
CHAMPION, CHALLENGER = "1", "2"


def entry(step: Step, rollout: str = "a", hours: float = 0, by: str = "", **details: Any) -> Entry:
    """A step of `rollout`, `hours` after the beginning."""
    if step is Step.REQUESTED:
        details = {"champion": CHAMPION, **details}
    version = "" if step is Step.REQUESTED else CHALLENGER
    at = BEGINNING + timedelta(hours=hours)
    return Entry(rollout, at, step, version, by or "somebody", f"{step} for a reason", details)
