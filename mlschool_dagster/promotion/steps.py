"""The next step of an episode: a pure function of its entries and of what the world says.

Nothing is remembered outside of the ledger. A run that was requested, by this process or by one
that died, is found among the attempts; a decision that was lost before it was told is taken again,
perhaps otherwise; one that was told is acted on, whatever the evidence says since.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.reconciler import RunStatus
from mlschool_dagster.promotion.canary import judge_canary
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.episode import GATES, Entry, Episode, Step, episodes
from mlschool_dagster.promotion.evidence import Finding, Health, PairedEvidence, Verdict
from mlschool_dagster.promotion.ledger import PromotionLedger
from mlschool_dagster.promotion.probation import judge_probation

MAXIMUM_ATTEMPTS = 3


class Act(StrEnum):
    """What is done for an episode, each by a run."""

    TRAINING = "training"
    CANARY = "canary"
    PROMOTION = "promotion"
    WITHDRAWAL = "withdrawal"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Served:
    """The versions that the endpoint serves, and why; ``by_us`` if a run of the episode wanted so.

    ``canary`` is empty if there is none.
    """

    primary: str
    canary: str
    by_us: bool
    reason: str = ""


class World(Protocol):
    """What is true at present, seen from one episode."""

    def attempts(self, act: Act) -> Sequence[RunStatus]:
        """The runs that were made for that act, newest first."""

    def served(self) -> Served | None:
        """What the endpoint is to serve; None if nothing."""

    def evidence(self) -> PairedEvidence:
        """Champion and challenger on the same requests, since the challenger is the canary."""

    def health(self) -> Health:
        """How the endpoint did since the challenger has its present role."""

    def metrics(self) -> Sequence[Metric]:
        """What monitoring measured since the champion was found to be worse."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The step is to be appended to the ledger."""

    step: Step
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Do:
    """The act is to be carried out by a run with that number, counted from 1."""

    act: Act
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done now, and why."""

    reason: str


Move = Tell | Do | Wait


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The act that a step asks for, and the step that tells of its success or failure."""

    act: Act
    success: Step
    failure: Step


_ACTS: Mapping[Step, _Outcome] = MappingProxyType(
    {
        # Who trains also compares, and tells of it: a run that ended well without that has failed.
        Step.REQUESTED: _Outcome(Act.TRAINING, Step.FAILED, Step.FAILED),
        Step.COMPARED: _Outcome(Act.CANARY, Step.CANARY, Step.FAILED),
        Step.CANARY_PASSED: _Outcome(Act.PROMOTION, Step.PROMOTED, Step.CANARY_FAILED),
        Step.CANARY_FAILED: _Outcome(Act.WITHDRAWAL, Step.ROLLED_BACK, Step.FAILED),
        Step.PROBATION_FAILED: _Outcome(Act.ROLLBACK, Step.ROLLED_BACK, Step.FAILED),
    }
)

_DONE: Mapping[Act, str] = MappingProxyType(
    {
        Act.TRAINING: "The run of the training ended well without comparing the challenger.",
        Act.CANARY: "The challenger answers a share of the requests and shadows the others.",
        Act.PROMOTION: "The challenger answers all requests.",
        Act.WITHDRAWAL: "The champion answers all requests again.",
        Act.ROLLBACK: "The champion before serves again.",
    }
)


def advance(episode: Episode, world: World, now: datetime, config: PromotionConfig) -> Move:
    """The next move of an open episode at `now` (timezone-aware)."""
    standing = episode.standing
    outcome = _ACTS.get(standing.step)
    attempts = world.attempts(outcome.act) if outcome else ()
    if not _under_way(attempts) and (superseded := _superseded(episode, world)):
        return superseded
    if standing.step is Step.COMPARED and not standing.details["better"]:
        return Tell(Step.REJECTED, standing.reason)
    if standing.step is Step.CANARY:
        verdict = judge_canary(world.evidence(), world.health(), standing.at, now, config)
        return _judged(verdict, Step.CANARY_PASSED, Step.CANARY_FAILED)
    if standing.step is Step.PROMOTED:
        return _on_probation(episode, world, now, config)
    if outcome is None:
        raise AssertionError(f"{standing.step} is no step of an open episode")
    return _gated(episode, world, now, config) or _carried_out(outcome, attempts)


def _superseded(episode: Episode, world: World) -> Tell | None:
    """The end of an episode in which somebody else deployed; training alone deploys nothing."""
    champion, challenger = episode.champion, episode.challenger
    match episode.standing.step:
        case Step.REQUESTED:
            return None
        case Step.COMPARED:
            expected = (champion, "")
        case Step.PROMOTED | Step.PROBATION_FAILED:
            expected = (challenger, "")
        case _:
            expected = (champion, challenger)
    served = world.served()
    if served is None:
        return Tell(Step.SUPERSEDED, "The endpoint serves nothing any more.")
    if served.by_us or (served.primary, served.canary) == expected:
        return None
    beside = f" with version {served.canary} as its canary" if served.canary else ""
    why = f" ({served.reason})" if served.reason else ""
    return Tell(
        Step.SUPERSEDED,
        f"Somebody else let version {served.primary}{beside} serve{why}.",
    )


def _judged(verdict: Verdict, passed: Step, failed: Step) -> Move:
    match verdict.finding:
        case Finding.GOOD:
            return Tell(passed, verdict.reason, verdict.figures)
        case Finding.BAD:
            return Tell(failed, verdict.reason, verdict.figures)
    return Wait(verdict.reason)


def _on_probation(episode: Episode, world: World, now: datetime, config: PromotionConfig) -> Move:
    since = episode.standing.at
    versions = (episode.champion, episode.challenger)
    verdict = judge_probation(world.metrics(), *versions, world.health(), since, now, config)
    if verdict.finding is Finding.OPEN and now - since >= config.probation_patience:
        hours = config.probation_patience / timedelta(hours=1)
        return Tell(Step.UNPROVEN, f"{verdict.reason} {hours:g} hours are over.", verdict.figures)
    return _judged(verdict, Step.HEALTHY, Step.PROBATION_FAILED)


def _gated(episode: Episode, world: World, now: datetime, config: PromotionConfig) -> Move | None:
    """What the gate behind the present step asks for; None if it is open."""
    gate = GATES.get(episode.standing.step)
    match episode.last.step:
        case Step.APPROVED:
            return None
        case Step.DECLINED:
            return Tell(Step.CANARY_FAILED, f"Declined by {episode.last.by}: {episode.last.reason}")
        case Step.APPROVAL_AWAITED:
            return _watched(episode, world, now, config) or Wait(
                f"{episode.last.reason} Run approval_job for episode {episode.id}."
            )
    if gate in config.approvals:
        return Tell(Step.APPROVAL_AWAITED, f"The {gate} waits for approval.", {"gate": gate.value})
    return None


def _watched(episode: Episode, world: World, now: datetime, config: PromotionConfig) -> Move | None:
    """The failure of a canary that answers while its promotion waits for approval."""
    canary = episode.entry(Step.CANARY)
    if canary is None:
        return None
    # That it took too long to show something is no objection any more.
    patient = replace(config, canary_patience=timedelta.max)
    verdict = judge_canary(world.evidence(), world.health(), canary.at, now, patient)
    if verdict.finding is not Finding.BAD:
        return None
    return Tell(Step.CANARY_FAILED, verdict.reason, verdict.figures)


def _carried_out(outcome: _Outcome, attempts: Sequence[RunStatus]) -> Move:
    if _under_way(attempts):
        return Wait(f"The {outcome.act} is under way.")
    if attempts and attempts[0] is RunStatus.SUCCEEDED:
        return Tell(outcome.success, _DONE[outcome.act])
    if len(attempts) >= MAXIMUM_ATTEMPTS:
        return Tell(
            outcome.failure,
            f"The {outcome.act} failed in {len(attempts)} runs; see their logs.",
        )
    return Do(outcome.act, len(attempts) + 1)


def _under_way(attempts: Sequence[RunStatus]) -> bool:
    return bool(attempts) and attempts[0] in (RunStatus.QUEUED, RunStatus.STARTED)


def proceed(
    ledger: PromotionLedger,
    world_of: Callable[[Episode], World],
    now: datetime,
    config: PromotionConfig,
    by: str,
) -> Do | Wait:
    """Take the open episode of `ledger` as far as it goes at `now`, and say what it waits for.

    Raises:
        OutOfOrderError: somebody else took a step meanwhile; call it again.
        UserError: the ledger cannot be used.
    """
    while True:
        entries = ledger.entries()
        episode = episodes(entries)[-1] if entries else None
        if episode is None or not episode.is_open:
            return Wait("No episode is open.")
        move = advance(episode, world_of(episode), now, config)
        if not isinstance(move, Tell):
            return move
        ledger.append(
            Entry(
                episode=episode.id,
                at=now,
                step=move.step,
                version=episode.challenger,
                by=by,
                reason=move.reason,
                details=move.details,
            ),
            after=len(entries),
        )
