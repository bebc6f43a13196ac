"""Hourly windows: the unit in which traffic is monitored.

A window is named by its key, ``2026-11-20-23:00`` (UTC), which is also its Dagster partition key.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mlschool_dagster.errors import UserError

KEY_FORMAT = "%Y-%m-%d-%H:%M"
FOLDER_FORMAT = "%Y-%m-%dT%H"
LENGTH = timedelta(hours=1)


@dataclass(frozen=True, order=True, slots=True)
class Window:
    """One hour of inference, [start, end), timezone-aware UTC."""

    start: datetime

    @property
    def end(self) -> datetime:
        """The first instant after the window."""
        return self.start + LENGTH

    @property
    def key(self) -> str:
        """The window's name, as in ``2026-11-20-23:00``."""
        return self.start.strftime(KEY_FORMAT)

    @property
    def folder(self) -> str:
        """The window's name where a key's colon may not be, as in ``2026-11-20T23``."""
        return self.start.strftime(FOLDER_FORMAT)

    @classmethod
    def of(cls, instant: datetime) -> "Window":
        """The window in which `instant` (timezone-aware) lies."""
        return cls(instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0))

    @classmethod
    def from_key(cls, key: str) -> "Window":
        """The window named `key`.

        Raises:
            UserError: `key` is not the start of an hour in the form ``2026-11-20-23:00``.
        """
        try:
            start = datetime.strptime(key, KEY_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            start = None
        if start is None or start.minute:
            raise UserError(f"{key!r} names no window; write it as 2026-11-20-23:00 (UTC).")
        return cls(start)
