"""Promotion: the challenger of the open episode is led step by step to its end."""

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.promotion.actions import LOOK, move_on, run_request
from mlschool_dagster.defs.promotion.promotion_ledger import (
    canary_evidence_job,
    promotion_ledger_job,
)
from mlschool_dagster.defs.promotion.rollouts import EpisodeWorld
from mlschool_dagster.defs.serving.endpoint import deployment_job, rollback_job
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.episode import Entry, Episode, Step, episodes
from mlschool_dagster.promotion.steps import Act
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy

NAME = "promotion_sensor"
INTERVAL_SECONDS = 15
ACTS = frozenset(Act) - {Act.TRAINING}


def build_promotion_sensor() -> dg.SensorDefinition:
    """The sensor ``promotion_sensor``."""

    @dg.sensor(
        name=NAME,
        jobs=[deployment_job, rollback_job, canary_evidence_job, promotion_ledger_job],
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Leads a challenger that was compared better through canary, promotion and "
        "probation, or back; waits for a human where the policy wants one; ends an episode in "
        "which somebody else deploys. Each step is in the asset promotion_ledger.",
    )
    def next_steps(
        context: dg.SensorEvaluationContext,
        history: History,
        endpoint: LocalEndpointResource,
        captures: Captures,
        promotion_policy: PromotionPolicy,
    ) -> dg.SensorResult:
        config = promotion_policy.config()

        def world(episode: Episode) -> EpisodeWorld:
            return EpisodeWorld(episode, context.instance, endpoint, history, captures)

        with history.promotions() as ledger:
            moved = move_on(ledger, world, utc_now(), config, NAME, ACTS)
            entries = ledger.entries()
        if isinstance(moved, dg.RunRequest):
            requests = [moved]
        else:
            newest = episodes(entries)[-1:]
            requests = [look for episode in newest for look in _look(world(episode), config)]
        cursor = str(len(entries))
        if entries and context.cursor != cursor:
            requests.append(_shown(entries))
        idle = dg.SkipReason(moved) if isinstance(moved, str) and not requests else None
        return dg.SensorResult(run_requests=requests, skip_reason=idle, cursor=cursor)

    return next_steps


def _look(world: EpisodeWorld, config: PromotionConfig) -> list[dg.RunRequest]:
    """A look at the canary of the episode, if it has one and it is time."""
    if world.episode.standing.step not in (Step.CANARY, Step.CANARY_PASSED):
        return []
    number = world.next_look()
    return [run_request(world.episode, LOOK, number, config)] if number else []


def _shown(entries: list[Entry]) -> dg.RunRequest:
    """The ledger as it is now; the key names its last entry, of whichever ledger."""
    newest = entries[-1]
    return dg.RunRequest(
        run_key=f"{newest.episode}/{newest.step}@{newest.number}",
        job_name=promotion_ledger_job.name,
    )
