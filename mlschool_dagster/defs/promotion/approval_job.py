"""Approvals: a human lets an episode go on, or not."""

from enum import Enum

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import PlainConfig, plain_errors
from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.episode import Entry, Step, episodes
from mlschool_dagster.resources.history import History


class Answer(Enum):
    """What a human says to a step that waits."""

    APPROVE = "approve"
    DECLINE = "decline"


_STEPS = {Answer.APPROVE: Step.APPROVED, Answer.DECLINE: Step.DECLINED}


class ApprovalSettings(PlainConfig):
    """Who answers what, and why."""

    decision: Answer = Field(
        description="APPROVE: the step is carried out; DECLINE: the episode ends, and a canary is "
        "withdrawn."
    )
    by: str = Field(min_length=1, description="Who decides; the ledger keeps it.")
    reason: str = Field(min_length=1, description="Why; the ledger keeps it.")
    episode: str = Field(
        default="", description="The episode that waits; empty: the open one, whichever it is."
    )


@dg.op()
def approval(context: dg.OpExecutionContext, config: ApprovalSettings, history: History) -> None:
    """Write the answer into the promotion ledger, if a step waits for one."""
    with plain_errors(), history.promotions() as ledger:
        told = episodes(ledger.entries())
        waiting = [e for e in told if e.last.step is Step.APPROVAL_AWAITED]
        chosen = [e for e in waiting if config.episode in ("", e.id)]
        if not chosen:
            which = f"Episode {config.episode}" if config.episode else "No episode"
            waits = "does not wait" if config.episode else "waits"
            raise UserError(
                f"{which} {waits} for approval; see the asset promotion_ledger for what does."
            )
        (episode,) = chosen
        step = _STEPS[config.decision]
        ledger.append(
            Entry(
                episode=episode.id,
                at=utc_now(),
                step=step,
                version=episode.challenger,
                by=config.by,
                reason=config.reason,
                details={"gate": episode.last.details["gate"], "run_id": context.run_id},
            )
        )
        context.log.info(f"episode {episode.id}: {step.value} by {config.by}")


@dg.job(
    tags={"stage": "promotion"},
)
def approval_job() -> None:
    """Approve or decline the step of a promotion that waits for a person.

    MLSCHOOL_APPROVALS says which steps do.
    """
    approval()
