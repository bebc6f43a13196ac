"""The one place where all is wired; it reads from top to bottom like the lineage."""

import os
import warnings
from contextlib import suppress
from datetime import timedelta
from typing import Any

import dagster as dg

from mlschool_dagster.capture.windows import first_window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.credentials import move_tracking_password
from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.defs import (
    alerting,
    data,
    maintenance,
    monitoring,
    promotion,
    serving,
    simulation,
    training,
)
from mlschool_dagster.defs.automation import build_automation_sensor
from mlschool_dagster.owned import PRIVATE
from mlschool_dagster.promotion.config import gates, policy
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster.resources.captures import Captures, CaptureSources
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.exits import scrub_exits
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.settings import ALERTS, ENDPOINT_TOKEN, Settings, unset_empty


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
    spec = load_spec(settings.spec)
    with suppress(OSError):
        # Listing the definitions needs no state folder.
        settings.make_home()
        settings.claim_home(spec.name)
    resources = {**RESOURCES[settings.deployment](settings, spec), **overrides}
    first = first_window(resources["files"].first_window, utc_now())
    merged = dg.Definitions.merge(
        data.build_definitions(spec, settings.data),
        training.build_definitions(spec),
        serving.build_definitions(spec, settings.data),
        monitoring.build_definitions(
            spec,
            first,
            rest=timedelta(seconds=settings.rest_seconds),
            import_interval=timedelta(seconds=settings.capture_import_seconds),
            imports=bool(settings.capture_source or settings.label_source),
        ),
        promotion.build_definitions(spec),
        alerting.definitions,
        simulation.build_definitions(spec, settings.data),
        maintenance.definitions,
        dg.Definitions(
            sensors=[build_automation_sensor()],
            resources=resources,
            executor=dg.in_process_executor,
        ),
    )
    return dg.Definitions(
        assets=[_linked_to_source(asset) for asset in merged.assets or ()],
        asset_checks=merged.asset_checks,
        jobs=merged.jobs,
        schedules=merged.schedules,
        sensors=merged.sensors,
        resources=merged.resources,
        executor=merged.executor,
    )


def _linked_to_source(asset: Any) -> Any:
    """`asset` with the file and line of its function, which the UI opens in an editor.

    Dagster's own function for it parses each function to its end, for which loading would pay.
    """
    if not isinstance(asset, dg.AssetsDefinition):
        return asset
    code = asset.op.compute_fn.decorated_fn.__code__  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        source = dg.LocalFileCodeReference(
            file_path=code.co_filename, line_number=code.co_firstlineno
        )
        link = dg.CodeReferencesMetadataValue(code_references=[source])
    return asset.map_asset_specs(
        lambda spec: spec.merge_attributes(metadata={"dagster/code_references": link})
    )


def _local(settings: Settings, spec: DataSpec) -> dict[str, dg.ConfigurableResource[Any]]:
    return {
        "mlflow": MlflowTracking(
            tracking_uri=_secret("MLFLOW_TRACKING_URI", settings.tracking_uri),
            experiment=spec.name,
            artifacts=str(settings.home / "mlartifacts"),
            dagster_url=settings.dagster_url,
        ),
        "files": platform_files(settings),
        "endpoint": LocalEndpointResource(
            home=str(settings.home / "endpoint"),
            name=spec.name,
            host=settings.endpoint_host,
            port=settings.endpoint_port,
            capture_store=_secret("MLSCHOOL_CAPTURE_STORE", settings.capture_store),
            workers=settings.endpoint_workers,
            spill_megabytes=settings.spill_megabytes,
            hosts=list(settings.hosts),
            connections=settings.endpoint_connections,
            keep_alive_seconds=settings.endpoint_keep_alive,
            preconnect_seconds=settings.endpoint_preconnect,
            token=_secret(ENDPOINT_TOKEN, ""),
            url=settings.endpoint_url,
        ),
        "captures": Captures(uri=_secret("MLSCHOOL_CAPTURE_STORE", settings.capture_store)),
        "capture_sources": CaptureSources(
            uri=_secret("MLSCHOOL_CAPTURE_SOURCE", settings.capture_source),
            labels_uri=_secret("MLSCHOOL_LABEL_SOURCE", settings.label_source),
            endpoint=spec.name,
        ),
        "history": History(uri=_secret("MLSCHOOL_HISTORY", settings.history), model=spec.name),
        "promotion_policy": PromotionPolicy(
            approvals=sorted(gates(settings.approvals)), **policy(settings.promotion)
        ),
        "alerts": Alerts(
            uri=_secret("MLSCHOOL_HISTORY", settings.history),
            model=spec.name,
            services=_secret(ALERTS, ""),
            reminder_hours=settings.alert_reminder_hours,
            dagster_url=settings.dagster_url,
        ),
    }


def platform_files(settings: Settings) -> PlatformFiles:
    """The platform's files where `settings` say that they are."""
    return PlatformFiles(
        root=settings.files,
        url=settings.files_url,
        version_cache=str(settings.home / "versions"),
        cache=str(settings.home / "cache" / "files"),
        compilation_cache=str(settings.home / "cache" / "jax"),
    )


RESOURCES = {"local": _local}
"""Which resources a deployment is made of, by the value of ``DAGSTER_DEPLOYMENT``."""


def _secret(variable: str, default: str) -> str:
    """A value that may hold a secret: the UI shows the name of its variable if one is set."""
    return dg.EnvVar(variable) if variable in os.environ else default


definitions = build_definitions()
