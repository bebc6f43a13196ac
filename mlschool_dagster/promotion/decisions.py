"""Decide the next action of a rollout: a pure function of its entries and the observed state.

Nothing is remembered outside the ledger. A run that was requested, by this process or by one that
died, is found among the attempts. A decision that was lost before it was recorded is made again,
maybe differently; a recorded one is executed, whatever the evidence has become.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.reconciler import RunStatus
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import (
    Conclusion,
    EndpointHealth,
    PairedEvidence,
    Verdict,
    judge_canary,
)
from mlschool_dagster.promotion.ledger import PromotionLedger
from mlschool_dagster.promotion.rollout import GATES, Entry, Rollout, Step, rollouts
from mlschool_dagster.promotion.soak import judge_soak

MAXIMUM_ATTEMPTS = 3


class RolloutAction(StrEnum):
    """Kind of a run of a rollout."""

    TRAINING = "training"
    CANARY = "canary"
    PROMOTION = "promotion"
    WITHDRAWAL = "withdrawal"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class ServingState:
    """The versions that the endpoint is to serve, and why.

    ``canary`` is empty if there is none; ``by_us``: a run of this rollout deployed them.
    """

    primary: str
    canary: str
    by_us: bool
    reason: str = ""


class RolloutContext(Protocol):
    """Observed state of one rollout."""

    def attempts(self, action: RolloutAction) -> Sequence[RunStatus]:
        """The runs for that action, newest first."""

    def serving_state(self) -> ServingState | None:
        """The versions that the endpoint is to serve; None if none."""

    def evidence(self) -> PairedEvidence:
        """Champion and challenger on the same requests, since the challenger is the canary."""

    def health(self) -> EndpointHealth:
        """Requests and errors since the challenger has its present role."""

    def metrics(self) -> Sequence[Metric]:
        """The metrics of the windows since the champion's degradation."""


@dataclass(frozen=True, slots=True)
class RecordTransition:
    """Append the step to the ledger."""

    step: Step
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunAction:
    """Execute the action by a run; ``attempt`` counts its runs from 1."""

    action: RolloutAction
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing now, and why."""

    reason: str


Decision = RecordTransition | RunAction | Wait


@dataclass(frozen=True, slots=True)
class _Execution:
    """The action that a step requires, and the steps that record its success or failure."""

    action: RolloutAction
    success: Step
    failure: Step


_ACTIONS: Mapping[Step, _Execution] = MappingProxyType(
    {
        # The training run records its comparison itself: one that succeeds without it has failed.
        Step.REQUESTED: _Execution(RolloutAction.TRAINING, Step.FAILED, Step.FAILED),
        Step.COMPARED: _Execution(RolloutAction.CANARY, Step.CANARY, Step.FAILED),
        Step.CANARY_PASSED: _Execution(RolloutAction.PROMOTION, Step.PROMOTED, Step.CANARY_FAILED),
        Step.CANARY_FAILED: _Execution(RolloutAction.WITHDRAWAL, Step.ROLLED_BACK, Step.FAILED),
        Step.SOAK_FAILED: _Execution(RolloutAction.ROLLBACK, Step.ROLLED_BACK, Step.FAILED),
    }
)

_DONE: Mapping[RolloutAction, str] = MappingProxyType(
    {
        RolloutAction.TRAINING: "The training run succeeded without comparing the challenger.",
        RolloutAction.CANARY: "The challenger answers a share of the requests.",
        RolloutAction.PROMOTION: "The challenger answers all requests.",
        RolloutAction.WITHDRAWAL: "The champion answers all requests again.",
        RolloutAction.ROLLBACK: "The former champion serves again.",
    }
)


def next_decision(
    rollout: Rollout, context: RolloutContext, now: datetime, config: PromotionConfig
) -> Decision:
    """The next decision on an open rollout at `now` (timezone-aware)."""
    current = rollout.current
    execution = _ACTIONS.get(current.step)
    attempts = context.attempts(execution.action) if execution else ()
    if not _under_way(attempts) and (superseded := _superseded(rollout, context)):
        return superseded
    if current.step is Step.COMPARED and not current.details["better"]:
        return RecordTransition(Step.REJECTED, current.reason)
    if current.step is Step.CANARY:
        verdict = judge_canary(context.evidence(), context.health(), current.at, now, config)
        return _record_verdict(verdict, Step.CANARY_PASSED, Step.CANARY_FAILED)
    if current.step is Step.PROMOTED:
        return _judge_soak(rollout, context, now, config)
    if execution is None:
        raise AssertionError(f"{current.step} is not a step of an open rollout")
    return _check_gate(rollout, context, config) or _execute(execution, attempts)


def run_until_blocked(
    ledger: PromotionLedger,
    context_of: Callable[[Rollout], RolloutContext],
    now: datetime,
    config: PromotionConfig,
    by: str,
) -> RunAction | Wait:
    """Record transitions of the open rollout until an action must run or something is awaited.

    Raises:
        InvalidTransitionError: another writer recorded a step meanwhile; call it again.
        UserError: the ledger cannot be used.
    """
    while True:
        entries = ledger.entries()
        rollout = rollouts(entries)[-1] if entries else None
        if rollout is None or not rollout.is_open:
            return Wait("No rollout is open.")
        decision = next_decision(rollout, context_of(rollout), now, config)
        if not isinstance(decision, RecordTransition):
            return decision
        ledger.append(
            Entry(
                rollout=rollout.id,
                at=now,
                step=decision.step,
                version=rollout.challenger,
                by=by,
                reason=decision.reason,
                details=decision.details,
            ),
            after=len(entries),
        )


def _superseded(rollout: Rollout, context: RolloutContext) -> RecordTransition | None:
    """The end of a rollout in which somebody else deployed; training alone deploys nothing."""
    champion, challenger = rollout.champion, rollout.challenger
    match rollout.current.step:
        case Step.REQUESTED:
            return None
        case Step.COMPARED:
            expected = (champion, "")
        case Step.PROMOTED | Step.SOAK_FAILED:
            expected = (challenger, "")
        case _:
            expected = (champion, challenger)
    serving = context.serving_state()
    if serving is None:
        return RecordTransition(Step.SUPERSEDED, "The endpoint serves nothing any more.")
    if serving.by_us or (serving.primary, serving.canary) == expected:
        return None
    beside = f" with version {serving.canary} as its canary" if serving.canary else ""
    why = f" ({serving.reason})" if serving.reason else ""
    return RecordTransition(
        Step.SUPERSEDED,
        f"Somebody else deployed version {serving.primary}{beside}{why}.",
    )


def _record_verdict(verdict: Verdict, passed: Step, failed: Step) -> Decision:
    match verdict.conclusion:
        case Conclusion.PASSED:
            return RecordTransition(passed, verdict.reason, verdict.figures)
        case Conclusion.FAILED:
            return RecordTransition(failed, verdict.reason, verdict.figures)
    return Wait(verdict.reason)


def _judge_soak(
    rollout: Rollout, context: RolloutContext, now: datetime, config: PromotionConfig
) -> Decision:
    since = rollout.current.at
    versions = (rollout.champion, rollout.challenger)
    verdict = judge_soak(context.metrics(), *versions, context.health(), since, now, config)
    if verdict.conclusion is Conclusion.UNDECIDED and now - since >= config.soak_patience:
        reason = f"{verdict.reason} {config.soak_patience_hours:g} hours are over."
        return RecordTransition(Step.UNPROVEN, reason, verdict.figures)
    return _record_verdict(verdict, Step.HEALTHY, Step.SOAK_FAILED)


def _check_gate(
    rollout: Rollout, context: RolloutContext, config: PromotionConfig
) -> Decision | None:
    """Unmet requirement of the gate after the current step; None if it is open."""
    gate, last = GATES.get(rollout.current.step), rollout.last
    match last.step:
        case Step.APPROVED:
            return None
        case Step.DECLINED:
            return RecordTransition(Step.CANARY_FAILED, f"Declined by {last.by}: {last.reason}")
        case Step.APPROVAL_AWAITED:
            return _watch_canary(rollout, context, config) or Wait(
                f"{last.reason} Run approval_job for rollout {rollout.id}."
            )
    if gate in config.approvals:
        reason = f"The {gate} waits for approval."
        return RecordTransition(Step.APPROVAL_AWAITED, reason, {"gate": gate.value})
    return None


def _watch_canary(
    rollout: Rollout, context: RolloutContext, config: PromotionConfig
) -> Decision | None:
    """The failure of a canary that serves while its promotion waits for approval."""
    canary = rollout.entry(Step.CANARY)
    if canary is None:
        return None
    # It has passed already: that time goes on is no failure.
    verdict = judge_canary(context.evidence(), context.health(), canary.at, canary.at, config)
    if verdict.conclusion is not Conclusion.FAILED:
        return None
    return RecordTransition(Step.CANARY_FAILED, verdict.reason, verdict.figures)


def _execute(execution: _Execution, attempts: Sequence[RunStatus]) -> Decision:
    action = execution.action
    if _under_way(attempts):
        return Wait(f"The {action} is under way.")
    if attempts and attempts[0] is RunStatus.SUCCEEDED:
        return RecordTransition(execution.success, _DONE[action])
    if len(attempts) >= MAXIMUM_ATTEMPTS:
        reason = f"The {action} failed in {len(attempts)} runs; see their logs."
        return RecordTransition(execution.failure, reason)
    return RunAction(action, len(attempts) + 1)


def _under_way(attempts: Sequence[RunStatus]) -> bool:
    return bool(attempts) and attempts[0] in (RunStatus.QUEUED, RunStatus.STARTED)
