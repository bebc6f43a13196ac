"""Run requests for the actions of a rollout.

A request that is lost with its daemon is made again with the same run key; runs that exist are
found by their tags.
"""

from collections.abc import Callable, Set
from datetime import datetime
from types import MappingProxyType
from typing import Any

import dagster as dg

from mlschool_dagster.defs.common import ROLLOUT_TAG
from mlschool_dagster.defs.promotion.challenger_comparison import retraining_job
from mlschool_dagster.defs.promotion.promotion_ledger import canary_evidence_job
from mlschool_dagster.defs.serving.endpoint import deployment_job, rollback_job
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.decisions import (
    RolloutAction,
    RolloutContext,
    Wait,
    run_until_blocked,
)
from mlschool_dagster.promotion.ledger import InvalidTransitionError, PromotionLedger
from mlschool_dagster.promotion.rollout import Rollout, rollouts

ACTION_TAG = "mlschool/action"
EVIDENCE_ACTION = "evidence"
"""Gathers evidence; it changes nothing that serves, and records no step."""

JOBS = MappingProxyType(
    {
        RolloutAction.TRAINING: retraining_job,
        RolloutAction.CANARY: deployment_job,
        RolloutAction.PROMOTION: deployment_job,
        RolloutAction.WITHDRAWAL: deployment_job,
        RolloutAction.ROLLBACK: rollback_job,
        EVIDENCE_ACTION: canary_evidence_job,
    }
)


def request_next_action(
    ledger: PromotionLedger,
    context_of: Callable[[Rollout], RolloutContext],
    now: datetime,
    config: PromotionConfig,
    by: str,
    actions: Set[RolloutAction],
) -> dg.RunRequest | str:
    """Advance the open rollout: a run for the next of `actions`, or the reason why there is none.

    Raises:
        UserError: the ledger or the endpoint cannot be read.
    """
    try:
        decision = run_until_blocked(ledger, context_of, now, config, by)
    except InvalidTransitionError as error:
        return f"{error} The next tick decides again."
    if isinstance(decision, Wait):
        return decision.reason
    if decision.action not in actions:
        return f"The {decision.action} is not requested by this sensor."
    return run_request(rollouts(ledger.entries())[-1], decision.action, decision.attempt, config)


def run_request(
    rollout: Rollout, action: str, number: int, config: PromotionConfig
) -> dg.RunRequest:
    """The request of run number `number` for `action`."""
    plan = _deployment(rollout, action, config)
    return dg.RunRequest(
        run_key=f"{rollout.id}/{action}#{number}",
        job_name=JOBS[action].name,
        run_config={"ops": {"endpoint": {"config": plan}}} if plan else {},
        tags={ROLLOUT_TAG: rollout.id, ACTION_TAG: str(action)},
    )


def _deployment(rollout: Rollout, action: str, config: PromotionConfig) -> dict[str, Any]:
    """Config of the asset `endpoint` for that action; empty if the action deploys nothing.

    Versions are named by number, so that a repeated run deploys the same.
    """
    champion, challenger = rollout.champion, rollout.challenger
    plans: dict[str, dict[str, Any]] = {
        RolloutAction.CANARY: {
            "version": champion,
            "canary": challenger,
            "canary_share": config.canary_share,
        },
        RolloutAction.PROMOTION: {"version": challenger},
        RolloutAction.WITHDRAWAL: {"version": champion},
        RolloutAction.ROLLBACK: {"version": champion},
    }
    if action not in plans:
        return {}
    return {**plans[action], "reason": f"rollout {rollout.id}: {rollout.current.reason}"}
