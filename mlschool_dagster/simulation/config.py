"""Configuration of a simulation, apart from the numerics so that definitions load quickly."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlschool_dagster.errors import UserError


class Drift(StrEnum):
    """Kinds of drift: how the rows differ from the data that they are drawn from.

    ``SHIFT``: 1 to 3 standard deviations, uniformly drawn, are added to each value of a numeric
    column. ``COVARIATE``: rows with large values of a numeric column are drawn more often.
    ``NEW_CATEGORY``: values of a categorical column become one it never had. ``MISSING``: values of
    a column are left out. ``CONCEPT``: the rows stay, what they mean changes to the next class.
    """

    NONE = "none"
    SHIFT = "shift"
    COVARIATE = "covariate"
    NEW_CATEGORY = "new_category"
    MISSING = "missing"
    CONCEPT = "concept"


DEFAULT_SHARES = {
    Drift.NONE: 1.0,
    Drift.SHIFT: 1.0,
    Drift.COVARIATE: 1.0,
    Drift.NEW_CATEGORY: 0.3,
    Drift.MISSING: 0.3,
    Drift.CONCEPT: 0.5,
}


def following(classes: Sequence[str]) -> dict[str, str]:
    """The class after each of `classes`, the first one after the last."""
    return dict(zip(classes, (*classes[1:], classes[0]), strict=True))


@dataclass(frozen=True, slots=True)
class TrafficConfig:
    """Number of rows, size of a request, and drift of simulated traffic.

    ``column``, ``share`` (of rows affected) and ``strength`` belong to ``drift``; None leaves the
    choice to it. The strength is that of `Drift.SHIFT`: how many standard deviations are added.
    """

    samples: int = 200
    drift: Drift = Drift.NONE
    column: str | None = None
    share: float | None = None
    strength: float | None = None
    batch_size: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"The traffic setting {name} is {value}; choose 1 or more.")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(
                f"The traffic setting share is {self.share}; choose one above 0 and up to 1."
            )
