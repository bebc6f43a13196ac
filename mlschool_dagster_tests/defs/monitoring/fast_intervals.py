"""A code location to kill: real assets, and sensors that soon take a run for dead."""

from datetime import timedelta

import dagster as dg

from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    NEW_CAPTURES,
    NEW_LABELS,
    build_arrival_sensor,
    monitoring_job,
)
from mlschool_dagster.monitoring.reconciler import ReconcilerConfig

# Longer than a run takes: a second one beside it would prove nothing.
FAST = ReconcilerConfig(backoff=timedelta(seconds=5), stale_after=timedelta(seconds=90))


def monitoring_definitions(config: ReconcilerConfig) -> dg.Definitions:
    """The real assets and monitoring job, with sensors as patient as `config` says."""
    real = build_definitions()
    return dg.Definitions(
        assets=real.assets,
        asset_checks=real.asset_checks,
        jobs=[monitoring_job],
        sensors=[build_arrival_sensor(stream, config) for stream in (NEW_CAPTURES, NEW_LABELS)],
        resources=real.resources,
        executor=real.executor,
    )


definitions = monitoring_definitions(FAST)
