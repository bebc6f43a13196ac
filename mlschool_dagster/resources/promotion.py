"""The promotion policy as a resource, and which of its actions wait for a human."""

from typing import Any

import dagster as dg
from pydantic import Field
from pydantic.fields import FieldInfo

from mlschool_dagster.promotion.config import PromotionConfig


def _field(name: str) -> Any:
    """The field `name` of the policy, with its default, bounds and description."""
    declared = PromotionConfig.model_fields[name]
    field: FieldInfo = Field(default=declared.default, description=declared.description)
    field.metadata = list(declared.metadata)
    return field


class PromotionPolicy(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Policy of retraining and promotion."""

    approvals: list[str] = Field(
        default=[], description=PromotionConfig.model_fields["approvals"].description
    )
    confirmations: int = _field("confirmations")
    horizon: int = _field("horizon")
    minimum_labels: int = _field("minimum_labels")
    cooldown_hours: float = _field("cooldown_hours")
    budget: int = _field("budget")
    canary_share: float = _field("canary_share")
    minimum_rows: int = _field("minimum_rows")
    margin: float = _field("margin")
    canary_patience_hours: float = _field("canary_patience_hours")
    soak_windows: int = _field("soak_windows")
    soak_patience_hours: float = _field("soak_patience_hours")
    maximum_error_share: float = _field("maximum_error_share")
    alpha: float = _field("alpha")

    def config(self) -> PromotionConfig:
        """The policy as `promotion` takes it.

        Raises:
            UserError: its values contradict each other.
        """
        return PromotionConfig.model_validate(
            {name: getattr(self, name) for name in PromotionConfig.model_fields}
        )
