"""Thresholds of monitoring and their defaults, without the numerics that use them."""

from dataclasses import dataclass
from datetime import timedelta

from mlschool_dagster.errors import UserError

DEFAULT_ACCURACY_THRESHOLD = 0.7
"""The accuracy below which a version would not have been registered either."""

MAXIMUM_REFUSED_SHARE = 0.05
"""Tolerated share of refused requests: one request in twenty, as a convention."""

TOLERATED_DIFFERENCE = 0.05
"""By how much error shares of protected groups may differ: one row in twenty, as a convention."""


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """When a difference counts as drift.

    ``alpha`` is the chance that a window without drift is flagged, over all its tests together, and
    the chance that drift is ever confirmed in 1,000 such windows; ``minimum_effect`` is the least
    difference that matters, as a share of rows or in standard deviations of a quantity;
    ``minimum_rows`` is the least number of values a verdict rests on, in window and reference each.
    """

    alpha: float = 0.05
    minimum_effect: float = 0.1
    minimum_rows: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"The drift setting alpha is {self.alpha}; choose one between 0 and 1.")
        if not 0 <= self.minimum_effect < 1:
            raise UserError(
                f"The drift setting minimum_effect is {self.minimum_effect}; "
                "choose one from 0 to below 1."
            )
        if self.minimum_rows < 2:
            raise UserError(
                f"The drift setting minimum_rows is {self.minimum_rows}; choose 2 or more."
            )


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """When traffic counts as unusual.

    ``level`` is the false-alarm rate of a usual window on either side of its expected volume;
    ``minimum_windows`` is how many windows must be known before anything is expected;
    ``patience`` is how many times the longest usual silence traffic may pause, and
    ``shortest_pause`` what it may always; ``horizon`` is how far back one learns.
    """

    level: float = 0.001
    minimum_windows: int = 24
    patience: float = 2.0
    horizon: timedelta = timedelta(days=28)
    shortest_pause: timedelta = timedelta(minutes=5)
