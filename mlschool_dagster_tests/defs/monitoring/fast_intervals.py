"""A code location to kill: real assets, and sensors that soon take a run for dead."""

from datetime import timedelta

import dagster as dg

from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.jobs import asset_jobs
from mlschool_dagster.defs.monitoring.arrival_sensors import CAPTURES, LABELS, arrival_sensor
from mlschool_dagster.monitoring.reconciler import ReconcilerConfig
from mlschool_dagster.settings import Settings

# Longer than a run takes: a second one beside it would prove nothing.
FAST = ReconcilerConfig(backoff=timedelta(seconds=5), stale_after=timedelta(seconds=90))


def monitoring_definitions(config: ReconcilerConfig) -> dg.Definitions:
    """The real assets and monitoring job, with sensors as patient as `config` says."""
    real = build_definitions()
    jobs = asset_jobs(load_spec(Settings.from_environment().spec))
    monitoring = next(job for job in jobs if job.name == "monitoring_job")
    return dg.Definitions(
        assets=real.assets,
        asset_checks=real.asset_checks,
        jobs=[monitoring],
        sensors=[arrival_sensor(stream, monitoring, config) for stream in (CAPTURES, LABELS)],
        resources=real.resources,
        executor=real.executor,
    )


definitions = monitoring_definitions(FAST)
