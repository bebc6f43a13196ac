"""The sensor that begins a rollout when degradation of the champion is confirmed."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.promotion.challenger_comparison import retraining_job
from mlschool_dagster.defs.promotion.promotion_sensor import INTERVAL_SECONDS
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.rollout import Entry, Rollout, Step, rollouts
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy

if TYPE_CHECKING:
    from mlschool_dagster.promotion.ledger import PromotionLedger
    from mlschool_dagster.promotion.retraining import RetrainingDecision

NAME = "retraining_sensor"
WINDOWS = 24 * 14
"""Newest windows that are read: two weeks of them."""


def build_retraining_sensor() -> dg.SensorDefinition:
    """The sensor ``retraining_sensor``: requests a retraining run for each open rollout."""

    @dg.sensor(
        name=NAME,
        jobs=[retraining_job],
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Begins a rollout when the champion degraded: drift, or accuracy below its "
        "threshold, in several windows without a data-quality failure. Needs labels to train on, "
        "cools down after each rollout, and has a weekly budget. Then it requests the training.",
    )
    def degradation(
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

        def context_of(rollout: Rollout) -> DagsterRolloutContext:
            return DagsterRolloutContext(rollout, context.instance, endpoint, history, captures)

        with history.promotions() as ledger:
            obstacle = _begin(ledger, history, endpoint, config)
            next_action = obstacle or request_next_action(
                ledger, context_of, utc_now(), config, NAME, {RolloutAction.TRAINING}
            )
        if isinstance(next_action, str):
            return dg.SensorResult(skip_reason=dg.SkipReason(next_action))
        return dg.SensorResult(run_requests=[next_action])

    return degradation


def _begin(
    ledger: "PromotionLedger",
    history: History,
    endpoint: EndpointResource,
    config: PromotionConfig,
) -> str:
    """Begin a rollout if none is open and one is due; the reason if there is none to train for."""
    from mlschool_dagster.promotion.ledger import InvalidTransitionError

    entries = ledger.entries()
    past = rollouts(entries)
    if past and past[-1].is_open:
        newest = past[-1]
        if newest.current.step is Step.REQUESTED:
            return ""
        return f"Rollout {newest.id} is under way: {newest.last.step}."
    decision = _decision(past, history, endpoint, config)
    if not decision.retrain:
        return decision.reason
    now = utc_now()
    rollout = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    entry = Entry(rollout, now, Step.REQUESTED, "", NAME, decision.reason, decision.details)
    try:
        ledger.append(entry, after=len(entries))
    except InvalidTransitionError as error:
        return str(error)
    return ""


def _decision(
    past: Sequence[Rollout],
    history: History,
    endpoint: EndpointResource,
    config: PromotionConfig,
) -> "RetrainingDecision":
    """Whether to challenge the present champion, by the windows in which it served alone."""
    from mlschool_dagster.deployment.ledger import terms
    from mlschool_dagster.promotion.retraining import (
        METRICS,
        RetrainingDecision,
        decide_retraining,
    )

    served = terms(history.deployment_entries(endpoint.name))
    if not served or served[-1].until is not None:
        return RetrainingDecision(False, "Nothing serves, so that nothing can degrade.")
    began = Window.of(served[-1].since)
    # Two versions served in the hour of a change.
    since = began if len(served) == 1 else Window(began.end)
    with history.metrics() as metrics:
        recent = metrics.read(METRICS, since=since, newest=WINDOWS)
    return decide_retraining(recent, served[-1].version, past, utc_now(), config)
