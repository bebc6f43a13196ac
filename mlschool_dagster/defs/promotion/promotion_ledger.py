"""The assets of a rollout: the evidence on its canary, and the promotion ledger."""

from collections.abc import Sequence
from dataclasses import asdict

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
from mlschool_dagster.promotion.rollout import Entry, Rollout, Step, rollouts
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster.resources.tracking import MlflowTracking

GROUP = "promotion"
ROLLOUT = "rollout"
LINKS = 10
"""Number of challengers with a link."""
EVIDENCE = "evidence"
AS_OF = "as_of"


def build_canary_evidence(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``canary_evidence``: champion and challenger on the same captured requests."""

    @dg.asset(
        key=CANARY_EVIDENCE,
        deps=[ENDPOINT, CHALLENGER_COMPARISON],
        group_name=GROUP,
        kinds={"table", "python"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        description="Champion and challenger on every request captured since the canary began: "
        "what one of them answered, the other replays on the same inputs. On how many rows they "
        "agree, who was right where labels came, and the e-values that decide the promotion. They "
        "are valid whenever they are examined: the chance that one ever reaches 20 wrongly is 5 %.",
    )
    def evidence(
        context: dg.AssetExecutionContext,
        captures: Captures,
        files: PlatformFiles,
        history: History,
        mlflow: MlflowTracking,
        promotion_policy: PromotionPolicy,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.promotion.paired_evaluation import (
            ReplayedVersion,
            replay,
            replay_token,
        )

        with plain_errors():
            rollout, canary = _open_canary(history)
            config = promotion_policy.config()
            registry = mlflow.registry(spec.name)
            champion, challenger = (
                ReplayedVersion(version, registry.fetch(version, files.versions))
                for version in (rollout.champion, rollout.challenger)
            )
            now = utc_now()
            with captures.open() as store:
                # Read first: what arrives while the captures are read causes another evidence run.
                token = replay_token(store, canary.at, now)
                evidence = replay(store, champion, challenger, canary.at, now, spec.target.classes)
            context.log.info(
                f"{evidence.pairs} rows replayed, {evidence.labelled} of them labelled"
            )
            return dg.MaterializeResult(
                metadata={
                    ROLLOUT: rollout.id,
                    "champion": rollout.champion,
                    "challenger": rollout.challenger,
                    "replayed_since": dg.MetadataValue.timestamp(canary.at),
                    **evidence.figures(config.margin),
                    "margin": config.margin,
                    EVIDENCE: dg.MetadataValue.json(asdict(evidence)),
                    AS_OF: token,
                }
            )

    return evidence


def _open_canary(history: History) -> tuple[Rollout, Entry]:
    """The open rollout with a canary, and the entry with which the canary began to serve.

    Raises:
        UserError: there is none.
    """
    with history.promotions() as ledger:
        known = rollouts(ledger.entries())
    canary = known[-1].entry(Step.CANARY) if known and known[-1].is_open else None
    if canary is None:
        raise UserError(
            "No open rollout has a canary, so that there is nothing to compare; see the "
            "asset promotion_ledger."
        )
    return known[-1], canary


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
        description="Every step of every rollout, from the degradation to the end: when, which "
        "version, by whom, why and with which figures. Newest first, times in UTC. Each version's "
        "tags in MLflow name its rollout and its newest step.",
    )
    def ledger(
        context: dg.AssetExecutionContext, history: History, mlflow: MlflowTracking
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with plain_errors():
            with history.promotions() as kept:
                entries = kept.entries()
            known = rollouts(entries)
            trained = [rollout for rollout in known if rollout.challenger]
            if trained:
                registry = mlflow.registry(spec.name)
                for rollout in trained:
                    registry.tag(rollout.challenger, _tags(rollout))
            context.log.info(f"{len(entries)} steps of {len(known)} rollouts")
            ended = {step: sum(e.last.step is step for e in known) for step in Step}
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": len(entries),
                    "rollouts": float(len(known)),
                    "open": float(sum(rollout.is_open for rollout in known)),
                    "healthy": float(ended[Step.HEALTHY]),
                    "rolled_back": float(ended[Step.ROLLED_BACK]),
                    "promotions": _rollouts_table(known),
                    "steps": _steps_table(entries),
                    "figures": _figures_table(entries),
                    **_links(trained, mlflow, spec),
                }
            )

    return ledger


def _tags(rollout: Rollout) -> dict[str, str]:
    return {
        ROLLOUT: rollout.id,
        "decision": rollout.last.step.value,
        "decision_reason": rollout.last.reason,
        "decision_by": rollout.last.by,
    }


def _rollouts_table(known: Sequence[Rollout]) -> dg.MetadataValue:
    return table(
        {
            "rollout": rollout.id,
            "began": _shown(rollout.entries[0]),
            "champion": rollout.champion,
            "challenger": rollout.challenger,
            "state": rollout.last.step.value,
            "since": _shown(rollout.last),
            "because": rollout.entries[0].reason,
        }
        for rollout in reversed(known)
    )


def _steps_table(entries: Sequence[Entry]) -> dg.MetadataValue:
    return table(
        {
            "when": _shown(entry),
            "rollout": entry.rollout,
            "step": entry.step.value,
            "version": entry.version,
            "why": entry.reason,
            "who": entry.by[:RUN_ID_SHOWN] if _is_run(entry.by) else entry.by,
        }
        for entry in reversed(entries)
    )


def _figures_table(entries: Sequence[Entry]) -> dg.MetadataValue:
    return table(
        {"rollout": entry.rollout, "step": entry.step.value, "figure": name, "value": value}
        for entry in reversed(entries)
        for name, value in entry.details.items()
        if isinstance(value, float)
    )


def _links(
    trained: Sequence[Rollout], mlflow: MlflowTracking, spec: DataSpec
) -> dict[str, dg.MetadataValue]:
    """The newest challengers in MLflow."""
    versions = [rollout.challenger for rollout in reversed(trained)][:LINKS]
    return {
        f"version_{version}": mlflow.link(f"models/{spec.name}/versions/{version}")
        for version in versions
    }


def _is_run(by: str) -> bool:
    """Whether `by` is the id of a run."""
    return len(by) == 36 and by.count("-") == 4


def _shown(entry: Entry) -> str:
    return entry.at.strftime("%Y-%m-%d %H:%M:%S")


canary_evidence_job = dg.define_asset_job(
    "canary_evidence_job",
    dg.AssetSelection.assets(CANARY_EVIDENCE),
    description="Compare the canary of the open rollout with the champion, on the requests that "
    "both predicted.",
    tags={"stage": "promotion", "dagster/max_runtime": 1800},
)
promotion_ledger_job = dg.define_asset_job(
    "promotion_ledger_job",
    dg.AssetSelection.assets(PROMOTION_LEDGER),
    description="Show every step of every promotion, and tag the versions in MLflow.",
    tags={"stage": "promotion", "dagster/max_runtime": 600},
)
