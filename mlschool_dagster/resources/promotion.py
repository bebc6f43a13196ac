"""What the closed loop decides by, and which of its steps wait for a human."""

from datetime import timedelta

import dagster as dg
from pydantic import Field

from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.rollout import Gate

_DEFAULTS = PromotionConfig()


def _hours(length: timedelta) -> float:
    return length / timedelta(hours=1)


class PromotionPolicy(dg.ConfigurableResource):  # type: ignore[type-arg]
    """When a challenger is trained, and what it must show before it answers."""

    approvals: list[str] = Field(
        default=[],
        description=f"What waits for a human's approval by approval_job: any of {', '.join(Gate)}.",
    )
    confirmations: int = Field(
        default=_DEFAULTS.confirmations,
        ge=1,
        description="Windows in which a signal must be found to confirm a degradation.",
    )
    horizon: int = Field(
        default=_DEFAULTS.horizon,
        ge=1,
        description="Newest windows with a verdict among which they are counted.",
    )
    minimum_labels: int = Field(
        default=_DEFAULTS.minimum_labels,
        ge=0,
        description="Labelled captures of the champion without which nothing is trained.",
    )
    cooldown_hours: float = Field(
        default=_hours(_DEFAULTS.cooldown), ge=0, description="Hours of rest after a rollout."
    )
    budget: int = Field(
        default=_DEFAULTS.budget, ge=0, description="Most rollouts that begin within seven days."
    )
    canary_share: float = Field(
        default=_DEFAULTS.canary_share,
        gt=0,
        lt=1,
        description="Share of the requests that a canary answers.",
    )
    minimum_rows: int = Field(
        default=_DEFAULTS.minimum_rows, ge=1, description="Rows that a canary must answer."
    )
    margin: float = Field(
        default=_DEFAULTS.margin,
        gt=0,
        lt=1,
        description="Accuracy by which a canary must be shown not to be worse.",
    )
    canary_patience_hours: float = Field(
        default=_hours(_DEFAULTS.canary_patience),
        gt=0,
        description="Hours within which a canary must have shown it.",
    )
    soak_windows: int = Field(
        default=_DEFAULTS.soak_windows,
        ge=1,
        description="Windows after which a new primary counts as healthy.",
    )
    soak_patience_hours: float = Field(
        default=_hours(_DEFAULTS.soak_patience),
        gt=0,
        description="Hours after which a new primary that too few windows tell of is unproven.",
    )
    maximum_error_share: float = Field(
        default=_DEFAULTS.maximum_error_share,
        gt=0,
        lt=1,
        description="Share of the requests that may be answered 5xx meanwhile.",
    )

    def config(self) -> PromotionConfig:
        """The policy as the promotion takes it.

        Raises:
            UserError: its values contradict each other.
        """
        return PromotionConfig(
            approvals=frozenset(Gate(gate) for gate in self.approvals),
            confirmations=self.confirmations,
            horizon=self.horizon,
            minimum_labels=self.minimum_labels,
            cooldown=timedelta(hours=self.cooldown_hours),
            budget=self.budget,
            canary_share=self.canary_share,
            minimum_rows=self.minimum_rows,
            margin=self.margin,
            canary_patience=timedelta(hours=self.canary_patience_hours),
            soak_windows=self.soak_windows,
            soak_patience=timedelta(hours=self.soak_patience_hours),
            maximum_error_share=self.maximum_error_share,
        )
