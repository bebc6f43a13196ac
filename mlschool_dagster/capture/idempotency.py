"""Idempotency keys: which rows an event id covers; which repetitions are duplicates or conflicts.

A request belongs to the name that its caller gave it, with exactly its rows. Its first row has the
name as event id, the others the name with ``#1``, ``#2``, ... appended. So whatever is asked under
a name that is taken collides in its first row, and the row after its last one shows whether there
were more before. A name that could be taken for another one's row gets a ``#`` at its end.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import orjson

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import Appended

NO_DUPLICATES = Appended({}, frozenset())

EventKey = tuple[str, bool]
"""An event id, and whether it is a shadow's: of each kind an event has one capture."""

_ROW = "#"
_DERIVED = re.compile(r"(#[0-9]*|~[0-9a-f]{16})$")
"""How event ids end that no caller chose."""


def row_ids(name: str, rows: int) -> list[str]:
    """The event ids of a request with so many `rows` that its caller called `name`."""
    first = f"{name}{_ROW}" if _DERIVED.search(name) else name
    return [first, *(f"{name}{_ROW}{row}" for row in range(1, rows))]


def next_row_id(event_id: str) -> str:
    """The event id of the next row of the request that `event_id` belongs to, if it has one."""
    name, separator, row = event_id.rpartition(_ROW)
    if separator and row.isdecimal():
        return f"{name}{_ROW}{int(row) + 1}"
    return f"{name if separator and not row else event_id}{_ROW}1"


def key_of(capture: Capture) -> EventKey:
    """Under which key `capture` is unique."""
    return capture.event_id, capture.role is Role.SHADOW


def affected_keys(captures: Iterable[Capture]) -> set[EventKey]:
    """The keys that `resolve_duplicates` looks up."""
    keys: set[EventKey] = set()
    for request in requests_of(captures):
        keys.update(map(key_of, request))
        if request[0].role is not Role.SHADOW:
            keys.add((next_row_id(request[-1].event_id), False))
    return keys


def requests_of(captures: Iterable[Capture]) -> list[list[Capture]]:
    """`captures` cut into the rows of one request each, a shadow's rows apart."""
    requests: list[list[Capture]] = []
    expected: EventKey | None = None
    for capture in captures:
        if key_of(capture) != expected:
            requests.append([])
        requests[-1].append(capture)
        expected = next_row_id(capture.event_id), capture.role is Role.SHADOW
    return requests


def resolve_duplicates(
    captures: Sequence[Capture], known: Mapping[EventKey, Capture]
) -> tuple[Appended, list[Capture]]:
    """Result of `CaptureStore.append` for `captures`, and those of them to be kept.

    ``known`` are those already kept under the `affected_keys`.
    """
    kept = dict(known)
    new: list[Capture] = []
    duplicates: dict[str, Capture] = {}
    conflicts: set[str] = set()
    for request in requests_of(captures):
        earlier = [kept.get(key_of(capture)) for capture in request]
        if request[0].role is Role.SHADOW:
            fresh = [capture for capture, first in zip(request, earlier, strict=True) if not first]
        elif (next_row_id(request[-1].event_id), False) in kept or not _agree(request, earlier):
            conflicts |= {capture.event_id for capture in request}
            continue
        elif earlier[0] is None:
            fresh = request
        else:
            fresh = []
            duplicates |= {first.event_id: first for first in earlier if first is not None}
        new += fresh
        kept |= {key_of(capture): capture for capture in fresh}
    if conflicts:
        return Appended({}, frozenset(conflicts)), []
    return Appended(duplicates, frozenset()), new


def resolve_rows(
    captures: Sequence[Capture], known: Mapping[EventKey, Capture]
) -> tuple[list[Capture], int, set[int]]:
    """Which of the imported `captures` are new, how many are duplicates, which are conflicts.

    Others capture each row by itself, in any order: it is a duplicate of the row that is ``known``
    under its id if the inputs are the same, else a conflict, given by its position. A shadow's
    prediction under an id that is known is a duplicate.
    """
    kept = dict(known)
    new: list[Capture] = []
    conflicts: set[int] = set()
    for position, capture in enumerate(captures):
        first = kept.setdefault(key_of(capture), capture)
        if first is capture:
            new.append(capture)
        elif capture.role is not Role.SHADOW and first.inputs != capture.inputs:
            conflicts.add(position)
    return new, len(captures) - len(new) - len(conflicts), conflicts


def _agree(request: Sequence[Capture], earlier: Sequence[Capture | None]) -> bool:
    """Whether the rows of `request` are all new, or all known with the same inputs."""
    return not any(earlier) or all(
        first is not None and first.inputs == capture.inputs
        for capture, first in zip(request, earlier, strict=True)
    )


def same_answer(one: Capture, other: Capture) -> bool:
    """Whether both hold the same answer to the client."""
    return _answer(one) == _answer(other)


def with_distinct_ids(captures: Sequence[Capture]) -> list[Capture]:
    """`captures` of one request under ids made of their own and of their answers.

    Those ids are the same each time, and nobody else's.
    """
    digested = orjson.dumps([_answer(c) for c in captures], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(digested).hexdigest()[:16]
    return [replace(capture, event_id=f"{capture.event_id}~{digest}") for capture in captures]


def _answer(capture: Capture) -> tuple[object, ...]:
    return (
        capture.inputs,
        capture.model_version,
        capture.prediction,
        capture.confidence,
        capture.probabilities,
    )
