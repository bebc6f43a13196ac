"""What an asset check says of itself when too little is known for a verdict.

Dagster knows checks that pass and checks that do not. A third outcome is a mark in the metadata:
whichever way such a check shows, alerts take it for no news.
"""

UNDECIDED = "undecided"
"""Metadata of a check that could not tell; it is absent from all others."""


def undecided(is_undecided: bool) -> dict[str, bool]:
    """The mark as metadata of a check, nothing if it could tell."""
    return {UNDECIDED: True} if is_undecided else {}
