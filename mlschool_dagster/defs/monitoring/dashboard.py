"""The dashboard: one page about the newest windows, and the sensor that rebuilds it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.automation import BUILT_AT_FIRST
from mlschool_dagster.defs.common import OWNERS, PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import (
    ACCURACY_ESTIMATES,
    DASHBOARD,
    DEPLOYMENT_LEDGER,
    PROMOTION_LEDGER,
    REPORTS,
    TRAFFIC_VOLUME,
)
from mlschool_dagster.defs.monitoring.windows import GROUP
from mlschool_dagster.defs.serving.deployment_ledger import RUN_ID_SHOWN
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.deployment.ledger import DeploymentEntry
    from mlschool_dagster.monitoring.dashboard.data import DashboardData, Event
    from mlschool_dagster.promotion.rollout import Entry

PAGE = "dashboard.html"
"""The page's name in the folder of the platform's files."""
SHOWN = (
    *REPORTS,
    ACCURACY_ESTIMATES,
    TRAFFIC_VOLUME,
    DEPLOYMENT_LEDGER,
    PROMOTION_LEDGER,
)
"""The assets that the page shows."""


class DashboardConfig(PlainConfig):
    """Extent of the page."""

    windows: int = Field(
        default=720,
        ge=1,
        description="Most windows that are shown, the newest; by default a month of hours.",
    )


def build_dashboard(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``dashboard``: one page that shows how the model does over time."""

    @dg.asset(
        key=DASHBOARD,
        automation_condition=BUILT_AT_FIRST,
        deps=SHOWN,
        group_name=GROUP,
        kinds={"plotly", "html"},
        owners=OWNERS,
        code_version="1",
        description="One page about the newest windows: is the model healthy, since when not, and "
        "what to do; accuracy, drift, traffic, quality, segments, labels, and what was deployed. "
        "Rebuilt when any of it is newer.",
    )
    def page(
        context: dg.AssetExecutionContext,
        config: DashboardConfig,
        history: History,
        files: PlatformFiles,
        endpoint: EndpointResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from filelock import FileLock

        from mlschool_dagster.monitoring.dashboard.health import health_summary
        from mlschool_dagster.monitoring.dashboard.page import write_dashboard

        place, lock = files.top / PAGE, Path(files.cache, f".{PAGE}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Whoever writes last has read last, so that of two runs at once none leaves an older page.
        with plain_errors(), FileLock(lock):
            data = _data(spec, config, history, history.deployment_entries(endpoint.name))
            with place.writing() as path:
                write_dashboard(path, data)
        health = health_summary(data)
        context.log.info(f"{len(data.windows)} windows, {health.status}")
        return dg.MaterializeResult(
            metadata={
                "page": files.link(place),
                "windows": float(len(data.windows)),
                "health": health.status.value,
                "problems": float(len(health.problems)),
                "sections": table(
                    {
                        "section": section.key,
                        "status": section.status.value,
                        "since": str(section.since or ""),
                        "text": section.text,
                    }
                    for section in health.sections
                ),
            }
        )

    return page


def _data(
    spec: DataSpec, config: DashboardConfig, history: History, deployed: "Sequence[DeploymentEntry]"
) -> "DashboardData":
    from mlschool_dagster.deployment.ledger import terms
    from mlschool_dagster.monitoring.dashboard.data import NAMES, DashboardData, ServingPeriod

    with history.metrics() as metrics:
        known = metrics.read(NAMES, newest=config.windows)
    with history.promotions() as ledger:
        entries = ledger.entries()
    return DashboardData(
        model=spec.name,
        now=utc_now(),
        metrics=known,
        periods=[ServingPeriod(term.version, term.since, term.until) for term in terms(deployed)],
        events=sorted([*_deployments(deployed), *_rollouts(entries)], key=lambda e: e.at),
    )


def _deployments(deployed: "Sequence[DeploymentEntry]") -> "Iterator[Event]":
    from mlschool_dagster.deployment.ledger import changes
    from mlschool_dagster.monitoring.dashboard.data import Event

    for change in changes(deployed):
        yield Event(
            at=change.at,
            subject=change.role.value,
            what=change.action.value,
            version=change.after or change.before or "",
            by=change.by[:RUN_ID_SHOWN],
            why=change.reason,
        )


def _rollouts(entries: "Sequence[Entry]") -> "Iterator[Event]":
    from mlschool_dagster.monitoring.dashboard.data import Event

    for entry in entries:
        yield Event(entry.at, "rollout", entry.step.value, entry.version, entry.by, entry.reason)


dashboard_job = dg.define_asset_job(
    "dashboard_job",
    dg.AssetSelection.assets(ACCURACY_ESTIMATES, DASHBOARD),
    description="Rebuild the accuracy estimates and the dashboard from what is known by now.",
    # Runs that monitor go first.
    tags={"stage": "monitoring", "dagster/max_runtime": 300, "dagster/priority": "-1"},
)
