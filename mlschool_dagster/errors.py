"""Exceptions shared by several packages, and the formatting of names and values in messages.

Belongs here: `UserError`, for what the user can resolve, and `RefusedError`, an endpoint's answer
to input it will not predict on. Does not belong here: errors of the program itself, which stay
ordinary exceptions with their traceback.
"""

from collections.abc import Sequence
from typing import Any

from mlschool_dagster.credentials import scrub

LISTED = 20
"""Number of names that a sentence lists; further ones are only counted."""
_READ = 1000
QUOTED = 40
"""Characters of a name or value that a sentence quotes."""
REASON = 200
"""Characters of another error's text that a sentence quotes."""


def listed(names: Sequence[object]) -> str:
    """Format `names` as a list of bounded length."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(quoted, names[:LISTED])) + more


def quoted(value: object) -> str:
    """Format `value` on one line of bounded length."""
    # Scrubbed before it is cut, as a part of a secret would not be recognised.
    text = scrub(" ".join(str(value).split())[:_READ])
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}\N{HORIZONTAL ELLIPSIS}"


def reason(error: Exception) -> str:
    """The kind of `error` and the beginning of its text, on one line, for use in a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:REASON]}".rstrip(": ")


class UserError(Exception):
    """An error that the user can resolve, in one sentence: what is wrong, where, what to do.

    No secret of this process's settings is in its text.
    """

    needs_no_traceback = True

    def __init__(self, message: str = "") -> None:
        super().__init__(scrub(message))


class RefusedError(UserError):
    """The endpoint refused a request as a whole and predicted nothing.

    ``faults`` lists the validation errors of the endpoint's response; it may be empty.
    """

    def __init__(self, message: str, faults: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)
