"""The one place where all is wired; it reads from top to bottom like the lineage."""

import os
from typing import Any

import dagster as dg

from mlschool_dagster.assets.captures import (
    captured_traffic,
    coverage_check,
    labels,
    live_traffic,
)
from mlschool_dagster.assets.data import raw_data
from mlschool_dagster.assets.reports import (
    data_quality_report,
    drift_report,
    performance_report,
)
from mlschool_dagster.assets.serving import endpoint
from mlschool_dagster.assets.training import cross_validation_and_model, registered_version
from mlschool_dagster.automation.alerts import alert_sensor
from mlschool_dagster.automation.jobs import asset_jobs, retraining_schedule
from mlschool_dagster.automation.outside_world import labeling_job, traffic_job
from mlschool_dagster.automation.sensors import CAPTURES, LABELS, following_sensor
from mlschool_dagster.modeling.spec import DataSpec, load_spec
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpoint
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.settings import Settings


def build_definitions(**overrides: Any) -> dg.Definitions:
    """The platform's definitions for the settings of the environment.

    Args:
        overrides: resources by name, in place of those of the chosen deployment.

    Raises:
        UserError: a setting or the data spec cannot be used.
    """
    settings = Settings.from_environment()
    spec = load_spec(settings.spec)
    diary = settings.home / "simulation" / "diary.jsonl"
    training, deployment, monitoring = asset_jobs(spec)
    return dg.Definitions(
        assets=[
            raw_data(spec, settings.data),
            cross_validation_and_model(spec),
            registered_version(spec),
            endpoint(spec),
            live_traffic(spec),
            captured_traffic(spec),
            labels(spec),
            data_quality_report(spec),
            drift_report(spec),
            performance_report(spec),
        ],
        asset_checks=[coverage_check()],
        jobs=[
            training,
            deployment,
            traffic_job(spec, settings.data, diary),
            labeling_job(spec, diary),
            monitoring,
        ],
        schedules=[retraining_schedule(training)],
        sensors=[
            following_sensor(CAPTURES, monitoring),
            following_sensor(LABELS, monitoring),
            alert_sensor(),
        ],
        resources={**RESOURCES[settings.deployment](settings, spec), **overrides},
        executor=dg.in_process_executor,
    )


def _local(settings: Settings, spec: DataSpec) -> dict[str, dg.ConfigurableResource[Any]]:
    return {
        "mlflow": MlflowTracking(
            tracking_uri=_location("MLFLOW_TRACKING_URI", settings.tracking_uri),
            experiment=spec.name,
            artifacts=str(settings.home / "mlartifacts"),
        ),
        "files": PlatformFiles(
            root=str(settings.files),
            url=settings.files_url,
            version_cache=str(settings.home / "versions"),
            compilation_cache=str(settings.home / "cache" / "jax"),
        ),
        "local_endpoint": LocalEndpoint(
            home=str(settings.home / "endpoint"),
            name=spec.name,
            host=settings.endpoint_host,
            port=settings.endpoint_port,
            capture_store=_location("MLSCHOOL_CAPTURE_STORE", settings.capture_store),
        ),
        "captures": Captures(uri=_location("MLSCHOOL_CAPTURE_STORE", settings.capture_store)),
    }


RESOURCES = {"local": _local}
"""Which resources a deployment is made of, by the value of ``DAGSTER_DEPLOYMENT``."""


def _location(variable: str, default: str) -> str:
    """A location that may carry a password: the UI shows its variable's name where one is set."""
    return dg.EnvVar(variable) if variable in os.environ else default


definitions = build_definitions()
