"""What is seen of a thing that may be in trouble, and what is told of it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mlschool_dagster.credentials import scrub

TEXT_LENGTH = 500
"""Most characters of a notice: more than anybody reads, and it fits every channel."""


class Condition(StrEnum):
    """How a thing was found."""

    TROUBLE = "trouble"
    """It is in trouble, until it is found fine."""
    FINE = "fine"
    UNKNOWN = "unknown"
    """It cannot be told: that begins no trouble and ends none."""
    EVENT = "event"
    """Something happened to it that somebody should know and nothing undoes."""


@dataclass(frozen=True, slots=True)
class Observation:
    """How the thing named ``key`` was found.

    ``order`` grows from one observation of a thing to its next (the seconds of its time do): one
    that is not above what is known of it is a repetition. ``window`` is the key of the window that
    was judged, empty if none was. ``text`` is a sentence; ``link`` the address of the evidence,
    empty if it has none. Troubles of one ``cause`` are told as one; empty: it has none in common.
    """

    key: str
    order: float
    condition: Condition
    text: str
    severe: bool = False
    link: str = ""
    window: str = ""
    cause: str = ""


class Kind(StrEnum):
    """What a notice tells."""

    TROUBLE = "trouble"
    REMINDER = "reminder"
    RECOVERY = "recovery"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class Notice:
    """What people are told, of the thing ``key``, as of ``at``."""

    key: str
    kind: Kind
    text: str
    severe: bool
    link: str
    at: datetime


def one_line(text: str) -> str:
    """`text` on one line of at most `TEXT_LENGTH` characters that any database takes, no secret."""
    valid = text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
    line = scrub(" ".join(valid.split()))
    return line if len(line) <= TEXT_LENGTH else f"{line[: TEXT_LENGTH - 1]}…"
