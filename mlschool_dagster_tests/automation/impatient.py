"""A code location to kill: the real definitions, with sensors that soon take a run for dead."""

from datetime import timedelta

import dagster as dg

from mlschool_dagster.automation.sensors import CAPTURES, LABELS, following_sensor
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.monitoring.following import FollowingConfig

REAL = build_definitions()
MONITORING = next(job for job in REAL.jobs or () if job.name == "monitoring_job")
# Longer than a run takes: a second one beside it would prove nothing.
IMPATIENT = FollowingConfig(backoff=timedelta(seconds=5), stale_after=timedelta(seconds=90))

definitions = dg.Definitions(
    assets=REAL.assets,
    asset_checks=REAL.asset_checks,
    jobs=REAL.jobs,
    sensors=[following_sensor(stream, MONITORING, IMPATIENT) for stream in (CAPTURES, LABELS)],
    resources=REAL.resources,
    executor=REAL.executor,
)
