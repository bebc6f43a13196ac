"""Deployment plans: which versions serve in which role, and which plans an endpoint allows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from math import isclose
from typing import Any

from mlschool_dagster.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which registered versions serve, by their numbers.

    The canary answers ``canary_share`` of the requests instead of the primary. The shadow predicts
    on ``shadow_share`` of them and never answers. ``sampling_share`` of the requests are captured.
    All shares are in (0, 1], or 0 where there is no canary or shadow.

    Raises:
        UserError: versions and shares contradict each other.
    """

    primary: str
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    shadow_share: float = 0.0
    sampling_share: float = 1.0

    def __post_init__(self) -> None:
        """Check that versions are numbers and that shares fit the roles."""
        for number in self.versions:
            if not (number.isascii() and number.isdecimal()):
                raise UserError(f"{number!r} is no version number; name a registered version.")
        for role, version, share in (
            ("canary", self.canary, self.canary_share),
            ("shadow", self.shadow, self.shadow_share),
        ):
            if not 0.0 <= share <= 1.0 or (version is None) != (share == 0.0):
                raise UserError(
                    f"A {role} share of {share:g} does not fit; give a {role} and a share above 0 "
                    "and up to 1 together, or neither."
                )
            if version == self.primary:
                raise UserError(
                    f"Version {version} cannot be the {role} of itself; name another version."
                )
        if not 0.0 < self.sampling_share <= 1.0:
            raise UserError(
                f"A sampling share of {self.sampling_share:g} cannot be used; choose one above 0 "
                "and up to 1."
            )

    @property
    def versions(self) -> list[str]:
        """The versions that the plan names, the primary first, each once."""
        named = (self.primary, self.canary, self.shadow)
        return list(dict.fromkeys(version for version in named if version is not None))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that are the same for equal plans, on any machine."""
        document = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-compatible data; `Plan.from_dict` reads it back."""
        return {
            name: float(value) if name.endswith("_share") else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Plan":
        """Read a plan that `to_dict` wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Capabilities of a kind of endpoint.

    ``share_step`` and ``sampling_step`` are the steps in which the service counts shares (0.01:
    whole percentages), 0 if any share will do. A deployment takes at most ``deploy_timeout``.
    ``refuses_reused_ids``: an inference id that comes again with other rows is refused, and with
    the same rows it is answered as before and captured once. ``durable``: a 200 means that the
    captures of the request are on disk.
    """

    canary: bool
    shadow: bool
    shadow_beside_canary: bool
    largest_canary_share: float = 1.0
    smallest_shadow_share: float = 0.0
    largest_shadow_share: float = 1.0
    share_step: float = 0.0
    sampling_step: float = 0.0
    deploy_timeout: timedelta
    refuses_reused_ids: bool
    durable: bool

    def require(self, plan: Plan) -> None:
        """Make sure that such an endpoint can carry out `plan`.

        Raises:
            UserError: it cannot; the sentence says why and what would fit.
        """
        if plan.canary is not None and not self.canary:
            raise UserError("This endpoint has no canaries; deploy without a canary.")
        if plan.shadow is not None and not self.shadow:
            raise UserError("This endpoint has no shadows; deploy without a shadow.")
        if plan.canary and plan.shadow and not self.shadow_beside_canary:
            raise UserError(
                "This endpoint cannot have a canary and a shadow at once; deploy one after the "
                "other."
            )
        for role, version, share, smallest, largest in (
            ("canary", plan.canary, plan.canary_share, 0.0, self.largest_canary_share),
            (
                *("shadow", plan.shadow, plan.shadow_share),
                *(self.smallest_shadow_share, self.largest_shadow_share),
            ),
        ):
            if version is not None and not smallest <= share <= largest:
                raise UserError(
                    f"A {role} share of {share:g} does not fit this endpoint; choose one from "
                    f"{smallest:g} to {largest:g}."
                )
            _require_step(f"{role} share", share, self.share_step)
        _require_step("sampling share", plan.sampling_share, self.sampling_step)


def _require_step(what: str, share: float, step: float) -> None:
    if step and not isclose(share / step, round(share / step), abs_tol=1e-9):
        raise UserError(
            f"A {what} of {share:g} does not fit this endpoint, which counts in steps of {step:g}; "
            f"choose {max(1, round(share / step)) * step:g}."
        )
