"""A look at the traffic every ten minutes, by the platform's clock."""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.monitoring.traffic import REPORT

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as AssetJob,
    )

EVERY = timedelta(minutes=10)
INTERVAL_SECONDS = 30


def volume_job() -> "AssetJob":
    """The job ``volume_job``."""
    return dg.define_asset_job(
        "volume_job",
        [REPORT],
        description="See how much traffic comes, against what usually comes.",
        # An outage is told whatever many windows wait for their reports.
        tags={"stage": "monitoring", "dagster/max_runtime": "300", "dagster/priority": "1"},
    )


def volume_sensor(job: "AssetJob") -> dg.SensorDefinition:
    """The sensor ``traffic_volume_sensor``: a schedule, but of the platform's own clock.

    Dagster's schedules know the machine's clock only, and sleep through a simulated day.
    """

    @dg.sensor(
        name="traffic_volume_sensor",
        job=job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at the volume and freshness of the traffic every ten minutes.",
    )
    def every_ten_minutes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = utc_now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        slot = (now - (now - midnight) % EVERY).isoformat()
        if slot == context.cursor:
            return dg.SensorResult(skip_reason=dg.SkipReason("The last look is recent enough."))
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=slot)], cursor=slot)

    return every_ten_minutes
