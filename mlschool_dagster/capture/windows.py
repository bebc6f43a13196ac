"""Hourly windows: the unit in which traffic is monitored.

A window is named by its key, ``2026-11-20-23:00`` (UTC), which is also its Dagster partition key.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mlschool_dagster.errors import UserError
from mlschool_dagster.storage import Location

KEY_FORMAT = "%Y-%m-%d-%H:%M"
FOLDER_FORMAT = "%Y-%m-%dT%H"
LENGTH = timedelta(hours=1)
MOST = 100_000
"""Windows that are monitored, back from the present one: as many partitions as Dagster advises."""


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
        return _padded(self.start, KEY_FORMAT)

    @property
    def folder(self) -> str:
        """The window's name where a key's colon may not be, as in ``2026-11-20T23``."""
        return _padded(self.start, FOLDER_FORMAT)

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


def earliest(now: datetime) -> Window:
    """The earliest window that is monitored at `now`; what claims to be older had a wrong clock."""
    return Window.of(now - MOST * LENGTH)


def first_window(file: Location, now: datetime) -> Window:
    """Start of the windows: that of the data, recorded in `file`; else of last year.

    Raises:
        UserError: the place for files cannot be reached.
    """
    try:
        key = file.read().decode(errors="replace")
    except OSError:
        key = ""
    try:
        kept = Window.from_key(key)
    except UserError:
        kept = Window(datetime(now.year - 1, 1, 1, tzinfo=UTC))
    return max(kept, earliest(now))


def begin_with(window: Window, file: Location, now: datetime) -> None:
    """Have the windows begin with `window` from now on, unless they begin earlier already."""
    present = first_window(file, now)
    first = min(window, present)
    if first < present or not file.exists():
        file.write(first.key.encode())


def _padded(instant: datetime, form: str) -> str:
    # The C library's years before 1000 have as many digits as they need.
    return instant.strftime(form.replace("%Y", f"{instant.year:04}"))
