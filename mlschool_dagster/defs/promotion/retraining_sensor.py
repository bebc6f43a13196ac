"""Retraining follows monitoring: a degradation that is confirmed asks for a challenger."""

import secrets
from collections.abc import Sequence

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.promotion.actions import move_on
from mlschool_dagster.defs.promotion.challenger_comparison import retraining_job
from mlschool_dagster.defs.promotion.promotion_sensor import INTERVAL_SECONDS
from mlschool_dagster.defs.promotion.rollouts import EpisodeWorld
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.episode import Entry, Episode, Step, episodes
from mlschool_dagster.promotion.ledger import OutOfOrderError, PromotionLedger
from mlschool_dagster.promotion.policy import METRICS, Decision, decide
from mlschool_dagster.promotion.steps import Act
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy

NAME = "retraining_sensor"
WINDOWS = 24 * 14
"""Newest windows that are looked at: two weeks of them."""


def build_retraining_sensor() -> dg.SensorDefinition:
    """The sensor ``retraining_sensor``: requests a retraining run for each open episode."""

    @dg.sensor(
        name=NAME,
        jobs=[retraining_job],
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Begins an episode when the champion got worse: drift, or accuracy below its "
        "threshold, in several windows without a breach of quality. It needs labels to train on, "
        "rests after each episode, and has a budget for a week. Then it has a challenger trained.",
    )
    def degradation(
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
            obstacle = _begin(ledger, history, endpoint, config)
            moved = obstacle or move_on(ledger, world, utc_now(), config, NAME, {Act.TRAINING})
        if isinstance(moved, str):
            return dg.SensorResult(skip_reason=dg.SkipReason(moved))
        return dg.SensorResult(run_requests=[moved])

    return degradation


def _begin(
    ledger: PromotionLedger,
    history: History,
    endpoint: LocalEndpointResource,
    config: PromotionConfig,
) -> str:
    """Begin an episode if none is open and one is due; why there is none to train for, if so."""
    entries = ledger.entries()
    told = episodes(entries)
    if told and told[-1].is_open:
        newest = told[-1]
        if newest.standing.step is Step.REQUESTED:
            return ""
        return f"Episode {newest.id} is under way: {newest.last.step}."
    decision = _decision(told, history, endpoint, config)
    if not decision.retrain:
        return decision.reason
    now = utc_now()
    episode = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    entry = Entry(episode, now, Step.REQUESTED, "", NAME, decision.reason, decision.details)
    try:
        ledger.append(entry, after=len(entries))
    except OutOfOrderError as error:
        return str(error)
    return ""


def _decision(
    told: Sequence[Episode],
    history: History,
    endpoint: LocalEndpointResource,
    config: PromotionConfig,
) -> Decision:
    """Whether the present champion is to be challenged, by the windows that are its alone."""
    from mlschool_dagster.deployment.ledger import terms

    served = terms(endpoint.target().history())
    if not served or served[-1].until is not None:
        return Decision(False, "Nothing serves, so that nothing can get worse.")
    began = Window.of(served[-1].since)
    # The hour of a change tells of two versions.
    since = began if len(served) == 1 else Window(began.end)
    with history.metrics() as metrics:
        found = metrics.read(METRICS, since=since, newest=WINDOWS)
    return decide(found, served[-1].version, told, utc_now(), config)
