"""The jobs, and the schedule on which the model is trained anew."""

from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.assets.captures import REPORTS
from mlschool_dagster.assets.data import raw_data_name
from mlschool_dagster.modeling.spec import DataSpec

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as AssetJob,
    )

TRAINED = ("cross_validation", "trained_model", "registered_version")
MONITORED = ("captured_traffic", "labels", *REPORTS)

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
            [raw_data_name(spec), *TRAINED],
            description="Raw data to registered version; fails, and registers nothing, when the "
            "data breaks its contract or the accuracy is below the threshold.",
            tags={"stage": "training", **_at_most(3600)},
        ),
        dg.define_asset_job(
            "deployment_job",
            ["endpoint"],
            description="Let the endpoint serve a version: the champion unless configured.",
            tags={"stage": "serving", **_at_most(600)},
        ),
        dg.define_asset_job(
            "monitoring_job",
            list(MONITORED),
            description="Everything that is known of one hourly window. Choose it by the tag "
            "dagster/partition.",
            tags={"stage": "monitoring", **_at_most(MONITORING_SECONDS)},
        ),
    ]


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
