"""Why a request is refused: what its caller is told, and under what it is counted."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_FAULTS = 100
INVALID = "The input is not valid; see the faults."

Fault = dict[str, Any]
"""``reason`` and, where they apply, ``row`` and ``column``."""

_BY_STATUS = {400: "malformed", 408: "too slow", 413: "too large", 415: "media type"}


class Finding(NamedTuple):
    """What is wrong in one place: `told` to the caller, `counted` under a name.

    A caller may be told of its own values. What is counted is shown to others, so its names are
    few and hold nothing that a request can choose.
    """

    told: str
    counted: str


class InvalidRequestError(Exception):
    """A request that is refused, with the HTTP status to answer it.

    The first `MAX_FAULTS` of ``faults`` are kept. ``reasons`` names what to count it under, the
    first reason found first; there is always one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        faults: Iterable[Fault] = (),
        reasons: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.faults = list(faults)[:MAX_FAULTS]
        self.reasons: Sequence[str] = list(reasons) or [_BY_STATUS.get(status, "refused")]


def invalid(finding: Finding, **where: int) -> InvalidRequestError:
    """The refusal of input that is no table of rows, `where` it shows."""
    return InvalidRequestError(422, INVALID, [{**where, "reason": finding.told}], [finding.counted])
