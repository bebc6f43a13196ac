"""Drift of one segment: whether its rows still look like those of the same segment in training.

A segment may change while the whole does not, and the whole may change only because its segments
come in other numbers. What is looked at is a bounded sample of the window, because each segment is
compared by all the tests that a window is.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mlschool_dagster.dataset.spec import ROLE, DataSpec
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.monitoring.drift import drift

if TYPE_CHECKING:
    import pandas as pd

SEGMENT_ROWS = 20_000
"""Rows of a window to be compared by segment: more would only find what is too small to matter."""


@dataclass(frozen=True, slots=True)
class SegmentDrift:
    """What the tests of a segment found; ``columns`` names those that drifted."""

    segment: str
    rows: int
    reference_rows: int
    verdict: str
    columns: str
    why: str

    def row(self) -> dict[str, Any]:
        """One flat mapping, for a table."""
        return asdict(self)


def drift_by_segment(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig | None = None,
) -> list[SegmentDrift]:
    """Compares each segment of `current` (`frames.current_frame`) with the same of `reference`.

    A role is compared with the whole reference. Segments with fewer rows than a verdict needs, in
    either, are left out. The chance that a window without drift has any segment flagged is at most
    `alpha` of `config`: each has an equal part of it (Bonferroni).
    """
    config = config or DriftConfig()
    compared = [
        (name, now, then)
        for name, now, then in _segments(current, reference, spec)
        if min(len(now), len(then)) >= config.minimum_rows
    ]
    strict = replace(config, alpha=config.alpha / max(1, len(compared)))
    return [_compared(name, now, then, spec, strict) for name, now, then in compared]


def _segments(
    current: "pd.DataFrame", reference: "pd.DataFrame", spec: DataSpec
) -> "Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]":
    for column in spec.categorical:
        for value in column.categories:
            now = current[current[column.name] == value]
            yield f"{column.name}={value}", now, reference[reference[column.name] == value]
    if current[ROLE].nunique() > 1:
        for role, now in current.groupby(ROLE):
            yield f"{ROLE}={role}", now, reference


def _compared(
    name: str,
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig,
) -> SegmentDrift:
    found = drift(current, reference, spec, config)
    return SegmentDrift(
        name,
        len(current),
        len(reference),
        str(found.verdict),
        ", ".join(column or "all together" for column in found.drifted_columns),
        found.summary,
    )
