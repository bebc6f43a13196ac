"""The one clock: what time it is for everything that is kept, judged or waited for.

Belongs here: the present moment. Does not belong here: measuring how long something takes, which
is the monotonic clock's.

A simulation may live at another time: the environment variable ``MLSCHOOL_CLOCK`` names a file that
holds by how many seconds the clock is ahead (or, negative, behind), and may be rewritten at will.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

CLOCK = "MLSCHOOL_CLOCK"

_OFFSET_FILE = Path(os.environ[CLOCK]) if os.environ.get(CLOCK) else None


def utc_now() -> datetime:
    """The current time, timezone-aware UTC."""
    now = datetime.now(UTC)
    if _OFFSET_FILE is None:
        return now
    return now + timedelta(seconds=float(_OFFSET_FILE.read_text(encoding="ascii")))
