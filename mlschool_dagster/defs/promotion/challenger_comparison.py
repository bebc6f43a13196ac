"""The comparison: whether the challenger is better than the champion."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import (
    NETWORK_RETRIES,
    OWNERS,
    ROLLOUT_TAG,
    PlainConfig,
    metadata_of,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.data.datasets import read_dataset
from mlschool_dagster.defs.data.training_data import HELD_OUT, LABELLED
from mlschool_dagster.defs.keys import (
    CHALLENGER_COMPARISON,
    REGISTERED_VERSION,
    TRAINING_DATA,
    raw_data_key,
)
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.comparison import ChallengerComparison, ComparisonConfig
    from mlschool_dagster.modeling.registry import Registry

GROUP = "training"


class ComparisonSettings(PlainConfig):
    """Requirements on the challenger."""

    minimum_rows: int = Field(
        default=50, ge=1, description="Least number of labelled captures put aside for a verdict."
    )
    minimum_accuracy: float = Field(
        default=0.7, ge=0, le=1, description="Least accuracy of the challenger on them."
    )
    minimum_gain: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Least accuracy that the challenger must have more than the champion.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Chance that an equal challenger is called better; and that it is called worse "
        "for some class or category.",
    )
    margin: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Accuracy that the challenger must surely not lose on the base data, out of "
        "fold, while that data's truth holds.",
    )

    def comparison(self) -> "ComparisonConfig":
        """The settings as the comparison takes them."""
        from mlschool_dagster.modeling.comparison import ComparisonConfig

        return ComparisonConfig(**self.model_dump())


def build_challenger_comparison(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``challenger_comparison``: challenger and champion on the same labelled rows."""

    @dg.asset(
        key=CHALLENGER_COMPARISON,
        deps=[REGISTERED_VERSION, TRAINING_DATA],
        group_name=GROUP,
        kinds={"mlflow", "scipy"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        check_specs=[
            dg.AssetCheckSpec(
                "challenger_is_better",
                asset=CHALLENGER_COMPARISON,
                description="The challenger beats the champion on labelled captures put aside, is "
                "worse for no class or category, and has not forgotten the base data.",
            )
        ],
        description="The new version beside the champion: both predict the labelled captures that "
        "were put aside. McNemar's exact test, a bootstrap interval of the difference, each class "
        "and category, the base data out of fold, and MLflow's validation thresholds.",
    )
    def comparison(
        context: dg.AssetExecutionContext,
        config: ComparisonSettings,
        files: PlatformFiles,
        mlflow: MlflowTracking,
        history: History,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with plain_errors():
            (challenger,) = metadata_of(context, REGISTERED_VERSION, "version")
            registry = mlflow.registry(spec.name)
            champion = registry.resolve("champion").version if _has_champion(registry) else None
            if champion == challenger:
                raise UserError(
                    f"Version {challenger} is the champion already; train a challenger first."
                )
            if champion is None:
                comparison, better, unknown = None, True, False
                summary = "There is no champion yet to compare with; the challenger may serve."
            else:
                comparison = _compared(context, champion, challenger, registry, files, spec, config)
                better, summary = comparison.verdict == "better", comparison.summary
                unknown = comparison.verdict == "not enough data"
            context.log.info(summary)
            figures = _figures(comparison)
            with mlflow.asset_run(context, CHALLENGER_COMPARISON.to_user_string()) as run:
                run.log_metrics(figures)
                tags = {"comparison": summary, "comparison_champion": champion or "none"}
                run.set_tags({**tags, "challenger": challenger})
            registry.tag(challenger, {**tags, "comparison_run_id": run.run_id})
            details = {
                "better": better,
                "champion": champion,
                "mlflow_run_id": run.run_id,
                **figures,
            }
            _record_in_ledger(context, history, challenger, summary, details)
            return dg.MaterializeResult(
                metadata={
                    "challenger": challenger,
                    "champion": champion or "none",
                    "verdict": str(comparison.verdict) if comparison else "no champion",
                    "summary": summary,
                    **figures,
                    **_shown(comparison),
                    "mlflow": mlflow.link(run.path),
                },
                check_results=[
                    dg.AssetCheckResult(
                        check_name="challenger_is_better",
                        passed=better,
                        severity=dg.AssetCheckSeverity.WARN,
                        description=summary,
                        metadata={**figures, **undecided(unknown)},
                    )
                ],
            )

    return comparison


def _has_champion(registry: "Registry") -> bool:
    from mlschool_dagster.modeling.registry import CHAMPION

    return registry.has_alias(CHAMPION)


def _compared(
    context: dg.AssetExecutionContext,
    champion: str,
    challenger: str,
    registry: "Registry",
    files: PlatformFiles,
    spec: DataSpec,
    config: ComparisonSettings,
) -> "ChallengerComparison":
    import pandas as pd

    from mlschool_dagster.modeling.comparison import (
        compare,
        compare_on_base,
        correct_mask,
        parts_of,
    )
    from mlschool_dagster.modeling.compiled import CompiledModel
    from mlschool_dagster.modeling.version_folder import REFERENCE_FILE

    base_digest, held_out_digest, new_truth = metadata_of(
        context, TRAINING_DATA, "base_digest", "held_out_digest", "new_truth"
    )
    held_out = read_dataset(files, HELD_OUT, held_out_digest)
    folders = [registry.fetch(version, files.versions) for version in (champion, challenger)]
    before, after = (correct_mask(CompiledModel.load(folder), held_out) for folder in folders)
    known, learnt = (pd.read_parquet(folder / REFERENCE_FILE) for folder in folders)
    base = read_dataset(files, raw_data_key(spec).to_user_string(), base_digest)
    return compare(
        before,
        after,
        parts_of(held_out, spec),
        compare_on_base(known, learnt, base, spec),
        config.comparison(),
        new_truth=new_truth,
    )


def _figures(comparison: "ChallengerComparison | None") -> dict[str, float]:
    if comparison is None or comparison.overall is None:
        return {}
    overall = comparison.overall
    figures = {
        "held_out_rows": float(overall.rows),
        "champion_accuracy": overall.champion,
        "challenger_accuracy": overall.challenger,
        "difference": overall.difference,
        "difference_lower": overall.lower,
        "difference_upper": overall.upper,
        "mcnemar_p_value": overall.p_value,
        "gained": float(overall.gained),
        "lost": float(overall.lost),
    }
    if comparison.base is not None:
        figures |= {
            "base_rows": float(comparison.base.rows),
            "base_difference": comparison.base.difference,
        }
    return figures


def _shown(comparison: "ChallengerComparison | None") -> dict[str, Any]:
    if comparison is None or comparison.overall is None:
        return {}
    from mlschool_dagster.modeling.plots import differences

    compared = {"all put aside": comparison.overall, **comparison.parts}
    if comparison.base is not None:
        compared["base data, out of fold"] = comparison.base
    return {
        "worst_part": comparison.worst_part or "none is large enough",
        "comparisons": table({"part": name, **asdict(part)} for name, part in compared.items()),
        "differences": picture(lambda: differences(compared), "difference in accuracy by part"),
    }


def _record_in_ledger(
    context: dg.AssetExecutionContext,
    history: History,
    challenger: str,
    summary: str,
    details: Mapping[str, Any],
) -> None:
    """Record the step if the run belongs to a rollout."""
    from mlschool_dagster.promotion.rollout import Entry, Step

    rollout = context.run.tags.get(ROLLOUT_TAG)
    if rollout is None:
        return
    with history.promotions() as ledger:
        ledger.append(
            Entry(rollout, utc_now(), Step.COMPARED, challenger, context.run_id, summary, details)
        )


retraining_job = dg.define_asset_job(
    "retraining_job",
    dg.AssetSelection.assets(CHALLENGER_COMPARISON).upstream(),
    description="A challenger trained on the raw data and labelled captures, and compared with the "
    "champion on captures that neither was trained on.",
    config={"ops": {"training_data": {"config": {"captures": LABELLED}}}},
    tags={"stage": "training", "dagster/max_runtime": 3600},
)
