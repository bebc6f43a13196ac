"""The closed loop, seen: the evidence on a canary, and every step of every promotion."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import NETWORK_RETRIES, OWNERS, plain_errors, table
from mlschool_dagster.defs.keys import (
    CANARY_EVIDENCE,
    CHALLENGER_COMPARISON,
    ENDPOINT,
    PROMOTION_LEDGER,
)
from mlschool_dagster.defs.serving.deployment_ledger import RUN_ID_SHOWN
from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.episode import Entry, Episode, Step, episodes
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.promotion.pairing import Chances

GROUP = "promotion"
EPISODE = "episode"
LINKS = 10
"""How many challengers are linked to."""
EVIDENCE = "evidence"
LANDED = "landed"


def build_canary_evidence(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``canary_evidence``: champion and challenger on the same live requests."""

    @dg.asset(
        key=CANARY_EVIDENCE,
        deps=[ENDPOINT, CHALLENGER_COMPARISON],
        group_name=GROUP,
        kinds={"table", "python"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        description="What the canary did since it answers: how many rows it answered itself, and, "
        "of the requests that the champion answered and it shadowed, on how many they agree, who "
        "was right where labels came, and the e-values that the promotion is decided by. They may "
        "be looked at as often as one likes: the chance that one ever reaches 20 wrongly is 5 %.",
    )
    def evidence(
        context: dg.AssetExecutionContext,
        captures: Captures,
        files: PlatformFiles,
        history: History,
        mlflow: MlflowTracking,
        promotion_policy: PromotionPolicy,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.promotion.pairing import landed, pair

        with plain_errors():
            episode, canary = _trial(history)
            config = promotion_policy.config()
            registry = mlflow.registry(spec.name)
            versions = (episode.champion, episode.challenger)
            chances = [_chances(registry, version, files) for version in versions]
            champion, challenger = zip(versions, chances, strict=True)
            now = utc_now()
            with captures.open() as store:
                # Asked for first: what lands while the rest is read is looked at again.
                token = landed(store, canary.at, now)
                found = pair(store, champion, challenger, canary.at, now, spec.target.classes)
            context.log.info(f"{found.pairs} pairs, {found.labelled} of them labelled")
            return dg.MaterializeResult(
                metadata={
                    EPISODE: episode.id,
                    "champion": episode.champion,
                    "challenger": episode.challenger,
                    **found.figures(config.margin),
                    "margin": config.margin,
                    EVIDENCE: dg.MetadataValue.json(asdict(found)),
                    LANDED: token,
                }
            )

    return evidence


def _trial(history: History) -> tuple[Episode, Entry]:
    """The open episode with a canary, and the entry with which that began to answer.

    Raises:
        UserError: there is none.
    """
    with history.promotions() as ledger:
        told = episodes(ledger.entries())
    canary = told[-1].entry(Step.CANARY) if told and told[-1].is_open else None
    if canary is None:
        raise UserError(
            "No canary of an open episode answers, so that there is nothing to compare; see the "
            "asset promotion_ledger."
        )
    return told[-1], canary


def _chances(registry: "Registry", version: str, files: PlatformFiles) -> "Chances":
    """The calibration of the version's confidences, as one curve."""
    from mlschool_dagster.modeling.calibration import confidence_bins, load_calibration

    calibration = load_calibration(registry.fetch(version, files.versions))
    curve = calibration.chances().mean(axis=0)

    def chances(confidence: Any) -> Any:
        return curve[confidence_bins(confidence.to_numpy())]

    return chances


def build_promotion_ledger(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``promotion_ledger``: each step of each promotion, by whom and why."""

    @dg.asset(
        key=PROMOTION_LEDGER,
        deps=[CHALLENGER_COMPARISON, CANARY_EVIDENCE, ENDPOINT],
        group_name=GROUP,
        kinds={"table", "mlflow"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        description="Every step of every episode, from the degradation that asked for a challenger "
        "to its end: when, which version, by whom, why and with which figures. Newest first, "
        "times in UTC. Each version's tags in MLflow name its episode and how that stands.",
    )
    def ledger(
        context: dg.AssetExecutionContext, history: History, mlflow: MlflowTracking
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with plain_errors():
            with history.promotions() as kept:
                entries = kept.entries()
            told = episodes(entries)
            trained = [episode for episode in told if episode.challenger]
            if trained:
                registry = mlflow.registry(spec.name)
                for episode in trained:
                    registry.tag(episode.challenger, _tags(episode))
            context.log.info(f"{len(entries)} steps of {len(told)} episodes")
            ended = {step: sum(e.last.step is step for e in told) for step in Step}
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": len(entries),
                    "episodes": float(len(told)),
                    "open": float(sum(episode.is_open for episode in told)),
                    "healthy": float(ended[Step.HEALTHY]),
                    "rolled_back": float(ended[Step.ROLLED_BACK]),
                    "promotions": _episodes_table(told),
                    "steps": _steps_table(entries),
                    "figures": _figures_table(entries),
                    **_links(trained, mlflow, spec),
                }
            )

    return ledger


def _tags(episode: Episode) -> dict[str, str]:
    return {
        EPISODE: episode.id,
        "decision": episode.last.step.value,
        "decision_reason": episode.last.reason,
        "decision_by": episode.last.by,
    }


def _episodes_table(told: Sequence[Episode]) -> dg.MetadataValue:
    return table(
        {
            "episode": episode.id,
            "began": _shown(episode.entries[0]),
            "champion": episode.champion,
            "challenger": episode.challenger,
            "stands": episode.last.step.value,
            "since": _shown(episode.last),
            "because": episode.entries[0].reason,
        }
        for episode in reversed(told)
    )


def _steps_table(entries: Sequence[Entry]) -> dg.MetadataValue:
    return table(
        {
            "when": _shown(entry),
            "episode": entry.episode,
            "step": entry.step.value,
            "version": entry.version,
            "why": entry.reason,
            "who": entry.by[:RUN_ID_SHOWN] if _is_run(entry.by) else entry.by,
        }
        for entry in reversed(entries)
    )


def _figures_table(entries: Sequence[Entry]) -> dg.MetadataValue:
    return table(
        {"episode": entry.episode, "step": entry.step.value, "figure": name, "value": value}
        for entry in reversed(entries)
        for name, value in entry.details.items()
        if isinstance(value, float)
    )


def _links(
    trained: Sequence[Episode], mlflow: MlflowTracking, spec: DataSpec
) -> dict[str, dg.MetadataValue]:
    """The newest challengers in MLflow."""
    versions = [episode.challenger for episode in reversed(trained)][:LINKS]
    return {
        f"version_{version}": mlflow.link(f"models/{spec.name}/versions/{version}")
        for version in versions
    }


def _is_run(by: str) -> bool:
    """Whether it is the id of a run."""
    return len(by) == 36 and by.count("-") == 4


def _shown(entry: Entry) -> str:
    return entry.at.strftime("%Y-%m-%d %H:%M:%S")


canary_evidence_job = dg.define_asset_job(
    "canary_evidence_job",
    dg.AssetSelection.assets(CANARY_EVIDENCE),
    description="Hold the canary of the open episode against the champion, on the requests that "
    "both predicted on.",
    tags={"stage": "promotion", "dagster/max_runtime": 1800},
)
promotion_ledger_job = dg.define_asset_job(
    "promotion_ledger_job",
    dg.AssetSelection.assets(PROMOTION_LEDGER),
    description="Show every step of every promotion, and tag the versions in MLflow.",
    tags={"stage": "promotion", "dagster/max_runtime": 600},
)
