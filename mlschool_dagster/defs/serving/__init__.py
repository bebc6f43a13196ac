"""Serving: the endpoint, its deployments and health, and batch prediction."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.serving.batch_predictions import batch_job, build_batch_predictions
from mlschool_dagster.defs.serving.deployment_ledger import deployment_ledger
from mlschool_dagster.defs.serving.endpoint import (
    build_endpoint,
    deployment_job,
    preflight_job,
    rollback_job,
    teardown_job,
)
from mlschool_dagster.defs.serving.endpoint_health import (
    endpoint_health,
    endpoint_health_schedule,
    health_job,
)


def build_definitions(spec: DataSpec, uri: str) -> dg.Definitions:
    """The area's definitions; batches are read from `uri` unless configured."""
    return dg.Definitions(
        assets=[
            build_endpoint(spec),
            deployment_ledger,
            endpoint_health,
            build_batch_predictions(spec, uri),
        ],
        jobs=[preflight_job, deployment_job, rollback_job, teardown_job, health_job, batch_job],
        schedules=[endpoint_health_schedule],
    )
