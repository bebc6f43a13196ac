"""Why a request is refused: the message for its caller, and the reason it is counted under."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_FAULTS = 100
MAX_SHOWN = 40
INVALID = "The input is not valid; see the faults."

Fault = dict[str, Any]
"""``reason`` and, where they apply, ``row`` and ``column``."""

_BY_STATUS = {400: "malformed", 408: "too slow", 413: "too large", 415: "media type"}


class ValidationIssue(NamedTuple):
    """Issue in one place: `message` to the caller, `reason` under a name.

    A message may quote the caller's own values. Reasons are shown to others, so they are few and
    hold nothing that a request can choose.
    """

    message: str
    reason: str

    def about(self, value: Any) -> str:
        """The message about `value`: ``must be a number, not 'heavy'``."""
        return self.message if value is None else f"{self.message}, not {shown(value)}"


def shown(value: Any) -> str:
    """`value` as a sentence may quote it: printable, and shortened to `MAX_SHOWN` characters."""
    # What a container holds could be megabytes long.
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"{value[:MAX_SHOWN]!r}..."
    return repr(value)


class InvalidRequestError(Exception):
    """A request that is refused, with the HTTP status to answer it.

    The first `MAX_FAULTS` of ``faults`` are kept. ``reasons`` names what to count it under, the
    the first one first; there is always one.
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


def invalid(issue: ValidationIssue, **where: int) -> InvalidRequestError:
    """The refusal of input that is no table of rows, `where` it shows."""
    return InvalidRequestError(422, INVALID, [{**where, "reason": issue.message}], [issue.reason])
