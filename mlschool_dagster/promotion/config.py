"""The promotion policy: every threshold, share and duration, declared once with its default."""

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.rollout import Gate

BUDGET_PERIOD = timedelta(days=7)


class PromotionConfig(BaseModel):
    """Policy of retraining, of a canary's evaluation, and of a new primary's soak.

    Raises:
        UserError: values contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvals: frozenset[Gate] = Field(
        default=frozenset(),
        description="Actions that require a human's approval by approval_job: any of "
        f"{', '.join(Gate)}.",
    )
    confirmations: int = Field(
        default=2,
        ge=1,
        description="Windows in which a signal must occur to confirm a degradation.",
    )
    horizon: int = Field(
        default=6, ge=1, description="Newest windows with a verdict among which they are counted."
    )
    minimum_labels: int = Field(
        default=100,
        ge=0,
        description="Labelled captures of the champion without which nothing is trained.",
    )
    cooldown_hours: float = Field(
        default=24.0, ge=0, description="Hours without a new rollout after the end of one."
    )
    budget: int = Field(default=3, ge=0, description="Most rollouts that begin within seven days.")
    canary_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the requests that a canary answers."
    )
    minimum_rows: int = Field(default=100, ge=1, description="Rows that a canary must answer.")
    margin: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Accuracy by which a canary must be shown not to be worse than the champion.",
    )
    canary_patience_hours: float = Field(
        default=24.0, gt=0, description="Hours within which a canary must have shown it."
    )
    soak_windows: int = Field(
        default=3,
        ge=1,
        description="Windows with a verdict after which a new primary counts as healthy.",
    )
    soak_patience_hours: float = Field(
        default=72.0,
        gt=0,
        description="Hours after which a new primary with too few such windows is unproven.",
    )
    maximum_error_share: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the requests that may fail while a version is canary or soaks.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Bound on the probability of each wrong claim about a canary or a new primary, "
        "however often the evidence is examined.",
    )

    @model_validator(mode="after")
    def _check_horizon(self) -> "PromotionConfig":
        if self.confirmations > self.horizon:
            raise UserError(
                f"The promotion policy asks for {self.confirmations} confirmations within "
                f"{self.horizon} windows; raise the horizon or lower the confirmations."
            )
        return self

    @property
    def cooldown(self) -> timedelta:
        """The time without a new rollout after the end of one."""
        return timedelta(hours=self.cooldown_hours)

    @property
    def canary_patience(self) -> timedelta:
        """The time within which a canary must have shown that it is not worse."""
        return timedelta(hours=self.canary_patience_hours)

    @property
    def soak_patience(self) -> timedelta:
        """The time after which a new primary with too few windows is unproven."""
        return timedelta(hours=self.soak_patience_hours)


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


def policy(text: str) -> dict[str, Any]:
    """The values that `text` gives to fields of `PromotionConfig`: ``name=value``, with commas.

    Raises:
        UserError: it names no such field, or a value that the field cannot have.
    """
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (side.strip() for side in part.partition("="))
        if name not in PromotionConfig.model_fields or name == "approvals":
            known = ", ".join(sorted(set(PromotionConfig.model_fields) - {"approvals"}))
            raise UserError(f"MLSCHOOL_PROMOTION sets {name!r}; it can set: {known}.")
        values[name] = value
    try:
        config = PromotionConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            f"MLSCHOOL_PROMOTION has {first['loc'][0]}={first['input']}; {first['msg'].lower()}."
        ) from None
    return {name: getattr(config, name) for name in values}
