"""State machine of a rollout: the life of one challenger, from retraining to healthy or back.

A rollout is an append-only list of entries. Each decision is recorded before it is executed, and
each action once it has succeeded, so that a process that dies leaves all that is needed to go on.

    requested -> compared -> canary -> canary passed -> promoted -> healthy
        |           |          |            |              |----> unproven
        |           |          |            |              '----> soak failed -> rolled back
        |           |          '------------'---> canary failed -> rolled back
        |           '--> rejected
        '--> failed

A human's approval may be required before the training, the canary and the promotion: approval
awaited, then approved or declined. A rollout is superseded when somebody deploys by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Step(StrEnum):
    """Step of a rollout, as an entry records it."""

    REQUESTED = "requested"
    """Degradation is confirmed: a challenger is to be trained."""
    APPROVAL_AWAITED = "approval awaited"
    APPROVED = "approved"
    DECLINED = "declined"
    COMPARED = "compared"
    """The challenger was trained and compared; the details say whether it is better."""
    REJECTED = "rejected"
    CANARY = "canary"
    """The challenger answers a share of the requests."""
    CANARY_PASSED = "canary passed"
    CANARY_FAILED = "canary failed"
    PROMOTED = "promoted"
    """The challenger answers all requests."""
    SOAK_FAILED = "soak failed"
    HEALTHY = "healthy"
    UNPROVEN = "unproven"
    """The challenger goes on serving, with too little data for a verdict."""
    ROLLED_BACK = "rolled back"
    """The former champion serves again, alone."""
    FAILED = "failed"
    SUPERSEDED = "superseded"


class Gate(StrEnum):
    """An action that can require a human's approval."""

    RETRAINING = "retraining"
    CANARY = "canary"
    PROMOTION = "promotion"


GATES: Mapping[Step, Gate] = MappingProxyType(
    {
        Step.REQUESTED: Gate.RETRAINING,
        Step.COMPARED: Gate.CANARY,
        Step.CANARY_PASSED: Gate.PROMOTION,
    }
)
"""The gate after a step."""

_APPROVAL = frozenset({Step.APPROVAL_AWAITED, Step.APPROVED, Step.DECLINED})

TRANSITIONS: Mapping[Step, frozenset[Step]] = MappingProxyType(
    {
        Step.REQUESTED: frozenset({Step.COMPARED, Step.FAILED, Step.SUPERSEDED}),
        Step.COMPARED: frozenset({Step.CANARY, Step.REJECTED, Step.FAILED, Step.SUPERSEDED}),
        Step.CANARY: frozenset({Step.CANARY_PASSED, Step.CANARY_FAILED, Step.SUPERSEDED}),
        Step.CANARY_PASSED: frozenset({Step.PROMOTED, Step.CANARY_FAILED, Step.SUPERSEDED}),
        Step.CANARY_FAILED: frozenset({Step.ROLLED_BACK, Step.FAILED, Step.SUPERSEDED}),
        Step.PROMOTED: frozenset({Step.HEALTHY, Step.UNPROVEN, Step.SOAK_FAILED, Step.SUPERSEDED}),
        Step.SOAK_FAILED: frozenset({Step.ROLLED_BACK, Step.FAILED, Step.SUPERSEDED}),
    }
)
"""Allowed transitions, apart from approvals; a step without any ends the rollout."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a rollout.

    ``at`` is timezone-aware; ``version`` is the challenger's, empty before it is trained; ``by`` is
    a sensor, a run's id or a person; ``details`` are JSON-compatible. ``number`` counts the
    ledger's entries from 1 and is assigned by the ledger.
    """

    rollout: str
    at: datetime
    step: Step
    version: str
    by: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """The entries of one rollout in their order, at least one."""

    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """The rollout's name."""
        return self.entries[0].rollout

    @property
    def last(self) -> Entry:
        """The newest entry."""
        return self.entries[-1]

    @property
    def current(self) -> Entry:
        """The newest entry that is not part of an approval: the state of the challenger."""
        return next(entry for entry in reversed(self.entries) if entry.step not in _APPROVAL)

    @property
    def is_open(self) -> bool:
        """Whether another step can follow."""
        return bool(self.allowed_steps())

    @property
    def challenger(self) -> str:
        """The version that is rolled out, empty before it is trained."""
        return next((entry.version for entry in reversed(self.entries) if entry.version), "")

    @property
    def champion(self) -> str:
        """The version that served when the rollout began."""
        return str(self.entries[0].details["champion"])

    def entry(self, step: Step) -> Entry | None:
        """The newest entry of that step, if there is one."""
        return next((entry for entry in reversed(self.entries) if entry.step is step), None)

    def allowed_steps(self) -> frozenset[Step]:
        """The steps that may be recorded next."""
        current = self.current.step
        allowed = TRANSITIONS.get(current, frozenset())
        match self.last.step:
            case Step.APPROVAL_AWAITED:
                ends = allowed & {Step.SUPERSEDED, Step.CANARY_FAILED}
                return ends | {Step.APPROVED, Step.DECLINED}
            case Step.APPROVED:
                return allowed
            case Step.DECLINED:
                # A canary that serves already must be withdrawn first.
                return allowed & {Step.CANARY_FAILED}
        return allowed | ({Step.APPROVAL_AWAITED} if current in GATES else set())


def rollouts(entries: Sequence[Entry]) -> list[Rollout]:
    """Group `entries`, in the ledger's order, by rollout; the newest rollout last."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.rollout, []).append(entry)
    return [Rollout(tuple(own)) for own in grouped.values()]
