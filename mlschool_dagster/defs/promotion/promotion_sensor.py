"""The sensor that advances the open rollout, and the jobs that it requests."""

from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.promotion.promotion_ledger import (
    canary_evidence_job,
    promotion_ledger_job,
)
from mlschool_dagster.defs.serving.endpoint import deployment_job, rollback_job
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.rollout import Entry, Rollout, Step, rollouts
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy

if TYPE_CHECKING:
    from mlschool_dagster.defs.promotion.rollout_context import DagsterRolloutContext

NAME = "promotion_sensor"
INTERVAL_SECONDS = 15


def build_promotion_sensor() -> dg.SensorDefinition:
    """The sensor ``promotion_sensor``."""

    @dg.sensor(
        name=NAME,
        jobs=[deployment_job, rollback_job, canary_evidence_job, promotion_ledger_job],
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Advances a rollout: canary, promotion and soak, or back; waits for a human "
        "where the policy requires one; ends a rollout in which somebody else deploys. Each step "
        "is in the asset promotion_ledger.",
    )
    def next_steps(
        context: dg.SensorEvaluationContext,
        history: History,
        endpoint: EndpointResource,
        captures: Captures,
        promotion_policy: PromotionPolicy,
    ) -> dg.SensorResult:
        from mlschool_dagster.defs.promotion.actions import request_next_action
        from mlschool_dagster.defs.promotion.rollout_context import DagsterRolloutContext
        from mlschool_dagster.promotion.decisions import RolloutAction

        config = promotion_policy.config()
        actions = frozenset(RolloutAction) - {RolloutAction.TRAINING}

        def context_of(rollout: Rollout) -> DagsterRolloutContext:
            return DagsterRolloutContext(rollout, context.instance, endpoint, history, captures)

        with history.promotions() as ledger:
            next_action = request_next_action(ledger, context_of, utc_now(), config, NAME, actions)
            entries = ledger.entries()
        if isinstance(next_action, dg.RunRequest):
            requests = [next_action]
        else:
            newest = rollouts(entries)[-1:]
            requests = [
                request
                for rollout in newest
                for request in _evidence_run(context_of(rollout), config)
            ]
        cursor = str(len(entries))
        if entries and context.cursor != cursor:
            requests.append(_ledger_run(entries))
        idle = dg.SkipReason(next_action) if isinstance(next_action, str) and not requests else None
        return dg.SensorResult(run_requests=requests, skip_reason=idle, cursor=cursor)

    return next_steps


def _evidence_run(context: "DagsterRolloutContext", config: PromotionConfig) -> list[dg.RunRequest]:
    """The evidence run of the rollout, if it has a canary and one is due."""
    from mlschool_dagster.defs.promotion.actions import EVIDENCE_ACTION, run_request

    if context.rollout.current.step not in (Step.CANARY, Step.CANARY_PASSED):
        return []
    number = context.next_evidence_run()
    return [run_request(context.rollout, EVIDENCE_ACTION, number, config)] if number else []


def _ledger_run(entries: list[Entry]) -> dg.RunRequest:
    """The run that shows the ledger; its key names the last entry, in whichever ledger."""
    newest = entries[-1]
    return dg.RunRequest(
        run_key=f"{newest.rollout}/{newest.step}@{newest.number}",
        job_name=promotion_ledger_job.name,
    )
