"""The one place where all is wired; it reads from top to bottom like the lineage."""

import os
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg

from mlschool_dagster.capture.windows import first_window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.credentials import move_tracking_password
from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.defs.alerting.failure_sensor import alert_sensor
from mlschool_dagster.defs.data.raw_data import raw_data
from mlschool_dagster.defs.data.training_data import training_data
from mlschool_dagster.defs.jobs import asset_jobs, health_schedule, retraining_schedule
from mlschool_dagster.defs.maintenance.retention import retention_job, retention_schedule
from mlschool_dagster.defs.monitoring.accuracy_estimates import accuracy_estimates
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    CAPTURES,
    FOLLOWING,
    LABELS,
    arrival_sensor,
)
from mlschool_dagster.defs.monitoring.captures import (
    captured_traffic,
    coverage_check,
    labels,
    live_traffic,
)
from mlschool_dagster.defs.monitoring.dashboard import dashboard
from mlschool_dagster.defs.monitoring.dashboard_sensor import dashboard_job, dashboard_sensor
from mlschool_dagster.defs.monitoring.data_quality_report import data_quality_report
from mlschool_dagster.defs.monitoring.drift_report import drift_report
from mlschool_dagster.defs.monitoring.performance_report import performance_report
from mlschool_dagster.defs.monitoring.traffic_volume import traffic_volume
from mlschool_dagster.defs.monitoring.traffic_volume_sensor import volume_job, volume_sensor
from mlschool_dagster.defs.monitoring.windows import partitions
from mlschool_dagster.defs.promotion.approval_job import approval_job
from mlschool_dagster.defs.promotion.challenger_comparison import challenger_comparison
from mlschool_dagster.defs.promotion.promotion_ledger import canary_evidence, promotion_ledger
from mlschool_dagster.defs.promotion.promotion_sensor import promotion_jobs, promotion_sensor
from mlschool_dagster.defs.promotion.retraining_sensor import retraining_sensor
from mlschool_dagster.defs.serving.batch_predictions import batch_predictions
from mlschool_dagster.defs.serving.deployment_ledger import deployment_ledger
from mlschool_dagster.defs.serving.endpoint import endpoint
from mlschool_dagster.defs.serving.endpoint_health import endpoint_health, health_checks
from mlschool_dagster.defs.simulation.jobs import labeling_job, traffic_job
from mlschool_dagster.defs.training.training import cross_validation_and_model, registered_version
from mlschool_dagster.owned import PRIVATE
from mlschool_dagster.promotion.config import gates
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.exits import scrub_exits
from mlschool_dagster.resources.files import FIRST_WINDOW, PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.settings import ALERT_WEBHOOK, ENDPOINT_TOKEN, SMTP, Settings, unset_empty


def build_definitions(**overrides: Any) -> dg.Definitions:
    """The platform's definitions for the settings of the environment.

    Args:
        overrides: resources by name, in place of those of the chosen deployment.

    Raises:
        UserError: a setting or the data spec cannot be used.
    """
    unset_empty()
    move_tracking_password()
    scrub_exits()
    settings = Settings.from_environment()
    # What runs write is for nobody else.
    os.umask(PRIVATE)
    with suppress(OSError):
        # Whoever only looks at the definitions needs no state.
        settings.make_home()
    spec = load_spec(settings.spec)
    windows = partitions(first_window(settings.files / FIRST_WINDOW, utc_now()))
    following = replace(FOLLOWING, rest=timedelta(seconds=settings.rest_seconds))
    ground_truth = settings.home / "simulation" / "ground_truth.jsonl"
    training, retraining, deployment, rollback, health, batch, monitoring = asset_jobs(spec)
    rebuilding = dashboard_job()
    promoting = promotion_jobs()
    looking = volume_job()
    retaining = retention_job()
    return dg.Definitions(
        assets=[
            raw_data(spec, settings.data),
            training_data(spec),
            cross_validation_and_model(spec),
            registered_version(spec),
            challenger_comparison(spec),
            endpoint(spec),
            deployment_ledger(),
            canary_evidence(spec),
            promotion_ledger(spec),
            endpoint_health(),
            batch_predictions(spec, settings.data),
            live_traffic(spec),
            traffic_volume(),
            captured_traffic(spec, windows),
            labels(spec, windows),
            data_quality_report(spec, windows),
            drift_report(spec, windows),
            performance_report(spec, windows),
            accuracy_estimates(),
            dashboard(spec),
        ],
        asset_checks=[coverage_check(), health_checks()],
        jobs=[
            training,
            retraining,
            deployment,
            rollback,
            health,
            batch,
            traffic_job(spec, settings.data, ground_truth),
            labeling_job(spec, ground_truth),
            monitoring,
            rebuilding,
            looking,
            *promoting,
            approval_job(),
            retaining,
        ],
        schedules=[
            retraining_schedule(training),
            health_schedule(health),
            retention_schedule(retaining),
        ],
        sensors=[
            arrival_sensor(CAPTURES, monitoring, following),
            arrival_sensor(LABELS, monitoring, following),
            retraining_sensor(retraining),
            promotion_sensor([deployment, rollback, *promoting]),
            dashboard_sensor(rebuilding),
            volume_sensor(looking),
            alert_sensor(),
        ],
        resources={**RESOURCES[settings.deployment](settings, spec), **overrides},
        executor=dg.in_process_executor,
    )


def _local(settings: Settings, spec: DataSpec) -> dict[str, dg.ConfigurableResource[Any]]:
    return {
        "mlflow": MlflowTracking(
            tracking_uri=_secret("MLFLOW_TRACKING_URI", settings.tracking_uri),
            experiment=spec.name,
            artifacts=str(settings.home / "mlartifacts"),
            dagster_url=settings.dagster_url,
        ),
        "files": PlatformFiles(
            root=str(settings.files),
            url=settings.files_url,
            version_cache=str(settings.home / "versions"),
            compilation_cache=str(settings.home / "cache" / "jax"),
        ),
        "endpoint": LocalEndpointResource(
            home=str(settings.home / "endpoint"),
            name=spec.name,
            host=settings.endpoint_host,
            port=settings.endpoint_port,
            capture_store=_secret("MLSCHOOL_CAPTURE_STORE", settings.capture_store),
            workers=settings.endpoint_workers,
            spill_bytes=settings.spill_bytes,
            hosts=list(settings.hosts),
            connections=settings.endpoint_connections,
            keep_alive_seconds=settings.endpoint_keep_alive,
            preconnect_seconds=settings.endpoint_preconnect,
            token=_secret(ENDPOINT_TOKEN, ""),
            url=settings.endpoint_url,
        ),
        "captures": Captures(uri=_secret("MLSCHOOL_CAPTURE_STORE", settings.capture_store)),
        "history": History(uri=_secret("MLSCHOOL_HISTORY", settings.history)),
        "promotion_policy": PromotionPolicy(approvals=sorted(gates(settings.approvals))),
        "alerts": Alerts(
            uri=_secret("MLSCHOOL_HISTORY", settings.history),
            webhook=_secret(ALERT_WEBHOOK, ""),
            recipients=list(settings.alert_emails),
            mail_server=_secret(SMTP, ""),
            reminder_hours=settings.alert_reminder_hours,
            dagster_url=settings.dagster_url,
        ),
    }


RESOURCES = {"local": _local}
"""Which resources a deployment is made of, by the value of ``DAGSTER_DEPLOYMENT``."""


def _secret(variable: str, default: str) -> str:
    """What is or may carry a secret: the UI shows its variable's name where one is set."""
    return dg.EnvVar(variable) if variable in os.environ else default


definitions = build_definitions()
