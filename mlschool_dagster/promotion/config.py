"""The promotion policy: thresholds, shares and durations, with their defaults."""

from dataclasses import dataclass
from datetime import timedelta

from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.rollout import Gate

BUDGET_PERIOD = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class PromotionConfig:
    """When to retrain, what a canary must show, and how long a new primary soaks.

    Retraining: a signal counts when it was found in ``confirmations`` of the ``horizon`` newest
    windows with a verdict; then ``minimum_labels`` labelled captures of the champion are needed,
    ``cooldown`` since the last rollout's end, and fewer than ``budget`` rollouts within
    `BUDGET_PERIOD`.

    Canary: it answers ``canary_share`` of the requests, at least ``minimum_rows`` rows, and must be
    shown to be at most ``margin`` (of accuracy) worse than the champion within ``canary_patience``.

    Soak: ``soak_windows`` windows with a verdict, within ``soak_patience``.

    ``maximum_error_share`` of the requests may fail in either. ``alpha`` bounds the probability of
    each wrong claim, whenever and however often the evidence is examined. ``approvals`` are the
    gates that require a human.
    """

    approvals: frozenset[Gate] = frozenset()
    confirmations: int = 2
    horizon: int = 6
    minimum_labels: int = 100
    cooldown: timedelta = timedelta(hours=24)
    budget: int = 3
    canary_share: float = 0.1
    minimum_rows: int = 100
    margin: float = 0.05
    canary_patience: timedelta = timedelta(hours=24)
    soak_windows: int = 3
    soak_patience: timedelta = timedelta(hours=72)
    maximum_error_share: float = 0.01
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that contradict each other."""
        if self.confirmations > self.horizon:
            raise UserError(
                f"The promotion policy asks for {self.confirmations} confirmations within "
                f"{self.horizon} windows; raise the horizon or lower the confirmations."
            )


def gates(text: str) -> frozenset[Gate]:
    """The gates that `text` lists, separated by commas; none if it is empty.

    Raises:
        UserError: it names something else.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return frozenset(Gate(name) for name in names)
    except ValueError:
        raise UserError(
            f"MLSCHOOL_APPROVALS is {text!r}; list any of {', '.join(Gate)}, separated by commas."
        ) from None
