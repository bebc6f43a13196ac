"""What it means that an event id is known already: the same rule for every store."""

from collections.abc import Mapping, Sequence

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import Appended

NOTHING_KNOWN = Appended({}, frozenset())

EventKey = tuple[str, bool]
"""An event id, and whether it is a shadow's: of each kind an event has one capture."""


def key_of(capture: Capture) -> EventKey:
    """Under which key `capture` is unique."""
    return capture.event_id, capture.role is Role.SHADOW


def settle(
    captures: Sequence[Capture], known: Mapping[EventKey, Capture]
) -> tuple[Appended, list[Capture]]:
    """What `CaptureStore.append` answers to `captures`, and which of them are to be kept.

    ``known`` are those already kept under the keys of `captures`.
    """
    kept = dict(known)
    new: list[Capture] = []
    repeated: dict[str, Capture] = {}
    refused: set[str] = set()
    for capture in captures:
        key = key_of(capture)
        first = kept.get(key)
        if first is None:
            kept[key] = capture
            new.append(capture)
        elif capture.role is Role.SHADOW:
            continue
        elif first.inputs == capture.inputs:
            repeated[capture.event_id] = first
        else:
            refused.add(capture.event_id)
    if refused:
        return Appended({}, frozenset(refused)), []
    return Appended(repeated, frozenset()), new
