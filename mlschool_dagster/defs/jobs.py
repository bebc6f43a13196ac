"""The jobs, and the schedules on which the model is trained anew and the endpoint looked after."""

from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.data.raw_data import raw_data_name
from mlschool_dagster.defs.data.training_data import LABELLED
from mlschool_dagster.defs.data.training_data import NAME as TRAINING_DATA
from mlschool_dagster.defs.monitoring.accuracy_estimates import NAME as ACCURACY_ESTIMATES
from mlschool_dagster.defs.monitoring.captures import REPORTS
from mlschool_dagster.defs.promotion.challenger_comparison import NAME as COMPARISON
from mlschool_dagster.defs.serving.endpoint import PREVIOUS
from mlschool_dagster.defs.serving.endpoint_health import NAME as ENDPOINT_HEALTH

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as AssetJob,
    )

TRAINED = ("cross_validation", "trained_model", "registered_version")
DEPLOYED = ("endpoint", "deployment_ledger")
RETRAINING = {"captures": LABELLED}
ROLLBACK = {"version": PREVIOUS, "reason": "roll back"}
MONITORED = ("captured_traffic", "labels", *REPORTS, ACCURACY_ESTIMATES)

MONITORING_SECONDS = 600
"""How long monitoring a window may take; a run that takes longer has died with its machine."""


def _at_most(seconds: int) -> dict[str, int]:
    """A bound after which Dagster ends a run, so that a dead one keeps no place in the queue."""
    return {"dagster/max_runtime": seconds}


def asset_jobs(spec: DataSpec) -> "list[AssetJob]":
    """The jobs that materialize assets, in the order of the lineage."""
    return [
        dg.define_asset_job(
            "training_job",
            [raw_data_name(spec), TRAINING_DATA, *TRAINED],
            description="Raw data to registered version; fails, and registers nothing, when the "
            "data breaks its contract or the accuracy is below the threshold.",
            tags={"stage": "training", **_at_most(3600)},
        ),
        dg.define_asset_job(
            "retraining_job",
            [raw_data_name(spec), TRAINING_DATA, *TRAINED, COMPARISON],
            description="A challenger trained on the raw data and labelled captures, and compared "
            "with the champion on captures that neither was trained on.",
            config={"ops": {TRAINING_DATA: {"config": RETRAINING}}},
            tags={"stage": "training", **_at_most(3600)},
        ),
        dg.define_asset_job(
            "deployment_job",
            list(DEPLOYED),
            description="Let the endpoint serve a version: the champion unless configured; with a "
            "canary and a shadow if there are to be any.",
            tags={"stage": "serving", **_at_most(600)},
        ),
        dg.define_asset_job(
            "rollback_job",
            list(DEPLOYED),
            description="Let the primary before the present one serve again, alone. It needs no "
            "configuration.",
            config={"ops": {"endpoint": {"config": ROLLBACK}}},
            tags={"stage": "serving", **_at_most(600)},
        ),
        dg.define_asset_job(
            "health_job",
            dg.AssetSelection.checks_for_assets(ENDPOINT_HEALTH),
            description="See how the endpoint does, and what it did since the last look.",
            tags={"stage": "serving", **_at_most(120)},
        ),
        dg.define_asset_job(
            "batch_job",
            ["batch_predictions"],
            description="Predict on a CSV or Parquet file, or a folder of them, with the champion "
            "unless configured.",
            tags={"stage": "serving"},
        ),
        dg.define_asset_job(
            "monitoring_job",
            list(MONITORED),
            description="Everything that is known of one hourly window. Choose it by the tag "
            "dagster/partition.",
            tags={"stage": "monitoring", **_at_most(MONITORING_SECONDS)},
        ),
    ]


def health_schedule(job: "AssetJob") -> dg.ScheduleDefinition:
    """A look at the endpoint every ten minutes."""
    return dg.ScheduleDefinition(
        name="endpoint_health_schedule",
        job=job,
        cron_schedule="*/10 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Observes endpoint_health every ten minutes.",
    )


def retraining_schedule(job: "AssetJob") -> dg.ScheduleDefinition:
    """Training every night; off until somebody turns it on."""
    return dg.ScheduleDefinition(
        name="nightly_retraining",
        job=job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Trains every night at 03:00 UTC; new versions become challenger.",
    )
