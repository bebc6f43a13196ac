"""The job by which a human approves or declines the next action of a rollout."""

from enum import Enum

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import PlainConfig, plain_errors
from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.rollout import Entry, Step, rollouts
from mlschool_dagster.resources.history import History


class Answer(Enum):
    """A human's answer to a step that waits for approval."""

    APPROVE = "approve"
    DECLINE = "decline"


_STEPS = {Answer.APPROVE: Step.APPROVED, Answer.DECLINE: Step.DECLINED}


class ApprovalSettings(PlainConfig):
    """Config of ``approval_job``: the answer, by whom and why."""

    decision: Answer = Field(
        description="APPROVE: the action runs; DECLINE: the rollout ends, and a canary is "
        "withdrawn."
    )
    by: str = Field(min_length=1, description="Who decides; kept in the ledger.")
    reason: str = Field(min_length=1, description="Why; kept in the ledger.")
    rollout: str = Field(
        default="", description="The rollout that waits; empty: the open one, whichever it is."
    )


@dg.op()
def approval(context: dg.OpExecutionContext, config: ApprovalSettings, history: History) -> None:
    """Write the answer into the promotion ledger, if a step waits for one."""
    with plain_errors(), history.promotions() as ledger:
        known = rollouts(ledger.entries())
        waiting = [e for e in known if e.last.step is Step.APPROVAL_AWAITED]
        chosen = [e for e in waiting if config.rollout in ("", e.id)]
        if not chosen:
            which = f"Rollout {config.rollout}" if config.rollout else "No rollout"
            waits = "does not wait" if config.rollout else "waits"
            raise UserError(
                f"{which} {waits} for approval; see the asset promotion_ledger for what does."
            )
        (rollout,) = chosen
        step = _STEPS[config.decision]
        ledger.append(
            Entry(
                rollout=rollout.id,
                at=utc_now(),
                step=step,
                version=rollout.challenger,
                by=config.by,
                reason=config.reason,
                details={"gate": rollout.last.details["gate"], "run_id": context.run_id},
            )
        )
        context.log.info(f"rollout {rollout.id}: {step.value} by {config.by}")


@dg.job(
    tags={"stage": "promotion"},
)
def approval_job() -> None:
    """Approve or decline the step of a promotion that waits for a person.

    MLSCHOOL_APPROVALS says which steps do.
    """
    approval()
