"""Acts as runs: what is requested for each act of an episode, and by which key.

A request that is lost with its daemon is made again by the same key, and a run that was made is
found by its tags.
"""

from collections.abc import Callable, Set
from datetime import datetime
from types import MappingProxyType
from typing import Any

import dagster as dg

from mlschool_dagster.defs.common import EPISODE_TAG
from mlschool_dagster.defs.promotion.challenger_comparison import retraining_job
from mlschool_dagster.defs.promotion.promotion_ledger import canary_evidence_job
from mlschool_dagster.defs.serving.endpoint import deployment_job, rollback_job
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.episode import Episode, episodes
from mlschool_dagster.promotion.ledger import OutOfOrderError, PromotionLedger
from mlschool_dagster.promotion.steps import Act, Wait, World, proceed

ACT_TAG = "mlschool/act"
LOOK = "look"
"""The act of gathering evidence: it changes nothing, so that no step stands for it."""

JOBS = MappingProxyType(
    {
        Act.TRAINING: retraining_job,
        Act.CANARY: deployment_job,
        Act.PROMOTION: deployment_job,
        Act.WITHDRAWAL: deployment_job,
        Act.ROLLBACK: rollback_job,
        LOOK: canary_evidence_job,
    }
)


def move_on(
    ledger: PromotionLedger,
    world_of: Callable[[Episode], World],
    now: datetime,
    config: PromotionConfig,
    by: str,
    acts: Set[Act],
) -> dg.RunRequest | str:
    """Take the open episode as far as it goes; the run that is one of `acts`, or what it waits for.

    Raises:
        UserError: the ledger or the endpoint cannot be read.
    """
    try:
        move = proceed(ledger, world_of, now, config, by)
    except OutOfOrderError as error:
        return f"{error} The next tick does."
    if isinstance(move, Wait):
        return move.reason
    if move.act not in acts:
        return f"The {move.act} is not requested by this sensor."
    return run_request(episodes(ledger.entries())[-1], move.act, move.attempt, config)


def run_request(episode: Episode, act: str, number: int, config: PromotionConfig) -> dg.RunRequest:
    """The run for that act; `number` tells it from those before."""
    wanted = _deployment(episode, act, config)
    return dg.RunRequest(
        run_key=f"{episode.id}/{act}#{number}",
        job_name=JOBS[act].name,
        run_config={"ops": {"endpoint": {"config": wanted}}} if wanted else {},
        tags={EPISODE_TAG: episode.id, ACT_TAG: str(act)},
    )


def _deployment(episode: Episode, act: str, config: PromotionConfig) -> dict[str, Any]:
    """What the endpoint is to serve after that act, empty if that does not concern it.

    Versions are named by number: whatever was deployed meanwhile, a repeated run does the same.
    """
    champion, challenger = episode.champion, episode.challenger
    plans: dict[str, dict[str, Any]] = {
        Act.CANARY: {
            "version": champion,
            "canary": challenger,
            "canary_share": config.canary_share,
            "shadow": challenger,
        },
        Act.PROMOTION: {"version": challenger},
        Act.WITHDRAWAL: {"version": champion},
        Act.ROLLBACK: {"version": champion},
    }
    if act not in plans:
        return {}
    return {**plans[act], "reason": f"episode {episode.id}: {episode.standing.reason}"}
