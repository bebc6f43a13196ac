"""What an asset check says of itself: of which window it speaks, and whether it could tell.

Dagster knows checks that pass and checks that do not. A third outcome is a mark in the metadata:
whichever way such a check shows, alerts take it for no news.
"""

from collections.abc import Iterable

import dagster as dg

from mlschool_dagster.capture.windows import Window

UNDECIDED = "undecided"
"""Metadata of a check that could not tell; it is absent from all others."""


def undecided(is_undecided: bool) -> dict[str, bool]:
    """The mark as metadata of a check, nothing if it could tell."""
    return {UNDECIDED: True} if is_undecided else {}


def of_window(window: Window, verdict: str) -> str:
    """A `verdict` that names its window: windows are monitored in any order, and again."""
    return f"{window.key}: {verdict}"


def outcomes(results: Iterable[dg.AssetCheckResult]) -> dict[str, bool | None]:
    """Whether each check passed, by name; None where it could not tell."""
    return {
        str(result.check_name): None if UNDECIDED in (result.metadata or {}) else result.passed
        for result in results
    }
