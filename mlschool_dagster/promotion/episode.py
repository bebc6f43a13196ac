"""Episodes: the story of one challenger, step by step, and which step may follow which.

Every decision is a step before it is acted on, and every act is one once it was seen done: so
whoever dies in between leaves behind all that is needed to go on.

    requested -> compared -> canary -> canary passed -> promoted -> healthy
        |           |          |            |              |----> unproven
        |           |          |            |              '----> probation failed -> rolled back
        |           |          '------------'---> canary failed -> rolled back
        |           '--> rejected
        '--> failed

A human may be asked before the training, the canary and the promotion: approval awaited, then
approved or declined. An episode also ends when somebody deploys by hand: superseded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Step(StrEnum):
    """What happened in an episode."""

    REQUESTED = "requested"
    """Degradation was confirmed: a challenger is to be trained."""
    APPROVAL_AWAITED = "approval awaited"
    APPROVED = "approved"
    DECLINED = "declined"
    COMPARED = "compared"
    """The challenger was trained and compared with the champion; details tell if it is better."""
    REJECTED = "rejected"
    CANARY = "canary"
    """The challenger answers a share of the requests, and shadows the rest."""
    CANARY_PASSED = "canary passed"
    CANARY_FAILED = "canary failed"
    PROMOTED = "promoted"
    """The challenger answers all requests."""
    PROBATION_FAILED = "probation failed"
    HEALTHY = "healthy"
    UNPROVEN = "unproven"
    """The challenger serves on, and too little came to say how well."""
    ROLLED_BACK = "rolled back"
    """The champion before serves again, alone."""
    FAILED = "failed"
    SUPERSEDED = "superseded"


class Gate(StrEnum):
    """Where a human's approval can be asked for: before which act."""

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
"""The gate that stands behind a step."""

_APPROVAL = frozenset({Step.APPROVAL_AWAITED, Step.APPROVED, Step.DECLINED})

_FOLLOWING: Mapping[Step, frozenset[Step]] = MappingProxyType(
    {
        Step.REQUESTED: frozenset({Step.COMPARED, Step.FAILED, Step.SUPERSEDED}),
        Step.COMPARED: frozenset({Step.CANARY, Step.REJECTED, Step.FAILED, Step.SUPERSEDED}),
        Step.CANARY: frozenset({Step.CANARY_PASSED, Step.CANARY_FAILED, Step.SUPERSEDED}),
        Step.CANARY_PASSED: frozenset({Step.PROMOTED, Step.CANARY_FAILED, Step.SUPERSEDED}),
        Step.CANARY_FAILED: frozenset({Step.ROLLED_BACK, Step.FAILED, Step.SUPERSEDED}),
        Step.PROMOTED: frozenset(
            {Step.HEALTHY, Step.UNPROVEN, Step.PROBATION_FAILED, Step.SUPERSEDED}
        ),
        Step.PROBATION_FAILED: frozenset({Step.ROLLED_BACK, Step.FAILED, Step.SUPERSEDED}),
    }
)
"""What may follow a step; nothing follows the others, but for approvals."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of an episode.

    ``at`` is timezone-aware; ``version`` is the challenger's, empty while there is none; ``by`` is
    a sensor, a run's id or a person; ``details`` are JSON-compatible. ``number`` counts the
    ledger's entries from 1 and is given by the ledger.
    """

    episode: str
    at: datetime
    step: Step
    version: str
    by: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


@dataclass(frozen=True, slots=True)
class Episode:
    """The entries of one episode in their order, at least one."""

    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """The episode's name."""
        return self.entries[0].episode

    @property
    def last(self) -> Entry:
        """The newest entry."""
        return self.entries[-1]

    @property
    def standing(self) -> Entry:
        """The newest entry that is no part of an approval: where the challenger stands."""
        return next(entry for entry in reversed(self.entries) if entry.step not in _APPROVAL)

    @property
    def is_open(self) -> bool:
        """Whether another step is to come."""
        return bool(self.following())

    @property
    def challenger(self) -> str:
        """The version that the episode is about, empty before it is trained."""
        return next((entry.version for entry in reversed(self.entries) if entry.version), "")

    @property
    def champion(self) -> str:
        """The version that served when the episode began."""
        return str(self.entries[0].details["champion"])

    def entry(self, step: Step) -> Entry | None:
        """The newest entry of that step, if there is one."""
        return next((entry for entry in reversed(self.entries) if entry.step is step), None)

    def following(self) -> frozenset[Step]:
        """The steps that may come next."""
        standing = self.standing.step
        following = _FOLLOWING.get(standing, frozenset())
        match self.last.step:
            case Step.APPROVAL_AWAITED:
                ends = following & {Step.SUPERSEDED, Step.CANARY_FAILED}
                return ends | {Step.APPROVED, Step.DECLINED}
            case Step.APPROVED:
                return following
            case Step.DECLINED:
                # What answers already must be withdrawn first.
                return following & {Step.CANARY_FAILED}
        return following | ({Step.APPROVAL_AWAITED} if standing in GATES else set())


def episodes(entries: Sequence[Entry]) -> list[Episode]:
    """The episodes that `entries`, in the ledger's order, tell of; the newest last."""
    stories: dict[str, list[Entry]] = {}
    for entry in entries:
        stories.setdefault(entry.episode, []).append(entry)
    return [Episode(tuple(story)) for story in stories.values()]
