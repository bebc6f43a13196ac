"""The dashboard follows what it shows: it is rebuilt when any of that has become newer."""

from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from mlschool_dagster.defs.monitoring.dashboard import NAME, SHOWN

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as AssetJob,
    )

INTERVAL_SECONDS = 60


def dashboard_job() -> "AssetJob":
    """The job ``dashboard_job``, which lets runs that monitor go first."""
    return dg.define_asset_job(
        "dashboard_job",
        [NAME],
        description="Rebuild the dashboard page from what is known by now.",
        tags={"stage": "monitoring", "dagster/max_runtime": 300, "dagster/priority": "-1"},
    )


def dashboard_sensor(job: "AssetJob") -> dg.SensorDefinition:
    """The sensor ``dashboard_sensor``: one run of `job` for all that became newer since the last.

    A run for each report would make a backfill of many windows rebuild the page as many times.
    """

    @dg.sensor(
        name="dashboard_sensor",
        job=job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Rebuilds the dashboard when a report or a ledger that it shows is newer than "
        "the page, one run at a time.",
    )
    def newer(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = dg.RunsFilter(job_name=job.name, statuses=NOT_FINISHED_STATUSES)
        if context.instance.get_run_records(busy, limit=1):
            return dg.SkipReason("The dashboard is being rebuilt.")
        # What lands while a run reads has a newer number than the one that the run was asked for.
        return dg.RunRequest(run_key=f"up to {_newest(context.instance)}")

    return newer


def _newest(instance: dg.DagsterInstance) -> int:
    """The number of the newest materialization of what the page shows; 0 without any."""
    records = instance.get_asset_records([dg.AssetKey(name) for name in SHOWN])
    numbers = [record.asset_entry.last_materialization_storage_id or 0 for record in records]
    return max(numbers, default=0)
