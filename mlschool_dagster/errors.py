"""The exceptions that more than one room must know.

Belongs here: `UserError`, for what the user can mend, and `RefusedError`, an endpoint's answer to
input it will not predict on. Does not belong here: errors of the program itself, which stay
ordinary exceptions with their traceback.
"""

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something that the user can mend, told in one sentence: what is wrong, where, what to do."""


class RefusedError(UserError):
    """The endpoint refused a request as a whole and predicted nothing.

    ``faults`` lists the reasons as the endpoint told them, one mapping each; it may be empty.
    """

    def __init__(self, message: str, faults: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)
