"""The endpoint's health: what it did since the last observation, and whether that is acceptable."""

import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import OWNERS, PlainConfig, plain_errors, table, undecided
from mlschool_dagster.defs.keys import ENDPOINT, ENDPOINT_HEALTH
from mlschool_dagster.defs.serving.endpoint import GROUP, roles
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.deployment.activity import Activity
    from mlschool_dagster.deployment.endpoint import EndpointStatus

UNTIL = "until"
"""Metadata of an observation: the end of the time that it covers."""
FIRST = timedelta(minutes=10)
"""The time that the first observation covers."""
_SEVERITY = {
    "up": dg.AssetCheckSeverity.ERROR,
    "as_deployed": dg.AssetCheckSeverity.WARN,
    "error_share": dg.AssetCheckSeverity.WARN,
    "latency": dg.AssetCheckSeverity.WARN,
}
_SHOWN = {0.5: "latency_p50", 0.95: "latency_p95", 0.99: "latency_p99"}


class HealthConfig(PlainConfig):
    """Thresholds of the endpoint's health."""

    maximum_error_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of requests since the last observation that may be answered "
        "5xx.",
    )
    maximum_p99_seconds: float = Field(
        default=0.25,
        gt=0,
        description="Longest that all but one in a hundred requests since the last observation may "
        "take.",
    )


_CHECKS = {
    "up": "The endpoint that was deployed answers.",
    "as_deployed": "The endpoint serves what the deployment ledger says.",
    "error_share": "The endpoint failed to answer at most the configured share of requests.",
    "latency": "The 99th percentile of the time to answer is at most the configured one.",
}


with warnings.catch_warnings():
    # Dagster marks this decorator as beta, which every command would print.
    warnings.simplefilter("ignore", dg.BetaWarning)
    _observable = dg.multi_observable_source_asset(
        name=ENDPOINT_HEALTH.to_user_string(),
        specs=[
            dg.AssetSpec(
                ENDPOINT_HEALTH,
                deps=[ENDPOINT],
                group_name=GROUP,
                kinds={"prometheus", "http"},
                owners=OWNERS,
                code_version="1",
                description="Whether the endpoint is up, which versions it serves, and what its "
                "metrics say of the time since the last observation: requests, errors, latency "
                "(seconds), memory (bytes), what waits to be captured. Observed by health_job.",
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(name, asset=ENDPOINT_HEALTH, description=description)
            for name, description in _CHECKS.items()
        ],
    )


@_observable  # type: ignore[untyped-decorator]
def endpoint_health(
    context: dg.AssetExecutionContext,
    config: HealthConfig,
    endpoint: EndpointResource,
    history: History,
) -> Iterator[dg.ObserveResult | dg.AssetCheckResult]:
    """Observe the endpoint since the last observation, and check what was observed."""
    from mlschool_dagster.deployment.activity import Activity
    from mlschool_dagster.deployment.ledger import serving_plan
    from mlschool_dagster.deployment.recorded import RecordedEndpoint

    with plain_errors(), history.deployments(endpoint.name) as ledger:
        target = endpoint.connect()
        recorded = serving_plan(ledger.entries())
        status, difference = RecordedEndpoint(target, ledger).observe()
        is_up = status.serving is not None
        now = utc_now()
        before = _last_until(context.instance)
        since = before or now - FIRST
        recent = target.activity(since, now) if is_up else Activity()
    latency = {_SHOWN[q]: seconds for q, seconds in recent.latency.items()}
    if not is_up:
        context.log.warning("the endpoint does not answer")
        kept = {} if before is None else {UNTIL: before.isoformat()}
        shown = {"up": 0.0, "state": status.state.value, **kept}
        yield dg.ObserveResult(asset_key=ENDPOINT_HEALTH, metadata=shown)
        yield from _down(recorded is not None, status)
        return
    context.log.info(f"{recent.requests:g} requests since the last observation")
    yield dg.ObserveResult(
        asset_key=ENDPOINT_HEALTH,
        metadata={
            "up": 1.0,
            "state": status.state.value,
            **roles(status.serving),
            **{k: float(v) for k, v in status.details.items() if k == "workers"},
            "requests": recent.requests,
            "refused": recent.refusals,
            "errors": recent.errors,
            "error_share": recent.error_share,
            **latency,
            **recent.gauges,
            "by_version": _by_version(recent),
            **({"console": dg.MetadataValue.url(status.console)} if status.console else {}),
            UNTIL: now.isoformat(),
        },
    )
    yield _result("up", True, f"Version {roles(status.serving)['version']} answers.")
    yield _result(
        "as_deployed",
        not difference and not status.reason,
        difference or status.reason or "The endpoint serves what was deployed.",
        undecided(status.is_changing),
    )
    yield _error_share(recent, config)
    yield _p99(latency, config)


def _last_until(instance: dg.DagsterInstance) -> datetime | None:
    """The end of the time that the last observation covers; None if there is none."""
    records = instance.fetch_observations(ENDPOINT_HEALTH, limit=1).records
    observation = records[0].asset_observation if records else None
    kept: Any = observation.metadata.get(UNTIL) if observation else None
    return None if kept is None else datetime.fromisoformat(kept.value)


def _by_version(recent: "Activity") -> dg.MetadataValue:
    return table(
        {
            "version": version,
            "requests": activity.requests,
            "errors": activity.errors,
            **{name: activity.latency.get(q) for q, name in _SHOWN.items()},
        }
        for version, activity in recent.by_version.items()
    )


def _down(is_deployed: bool, status: "EndpointStatus") -> Iterator[dg.AssetCheckResult]:
    if not is_deployed:
        reason = "The endpoint has not been deployed yet."
    else:
        why = f" ({status.reason.rstrip('.')})" if status.reason else ""
        reason = f"The endpoint does not answer{why}; materialize endpoint."
    yield _result("up", not is_deployed, reason)
    for name in ("as_deployed", "error_share", "latency"):
        yield _result(name, True, "Nothing is known while the endpoint is not up.", undecided(True))


def _error_share(recent: "Activity", config: HealthConfig) -> dg.AssetCheckResult:
    return _result(
        "error_share",
        recent.error_share <= config.maximum_error_share,
        f"{recent.errors:g} of {recent.requests:g} requests were answered 5xx.",
        {"error_share": recent.error_share, **undecided(not recent.requests)},
    )


def _p99(latency: Mapping[str, float], config: HealthConfig) -> dg.AssetCheckResult:
    p99 = latency.get("latency_p99")
    if p99 is None:
        return _result("latency", True, "There was no request.", undecided(True))
    return _result(
        "latency",
        p99 <= config.maximum_p99_seconds,
        f"99 in 100 requests took at most {p99 * 1000:.1f} ms.",
        latency,
    )


def _result(
    name: str, passed: bool, reason: str, metadata: Mapping[str, float] = MappingProxyType({})
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=ENDPOINT_HEALTH,
        passed=passed,
        severity=_SEVERITY[name],
        description=reason,
        metadata=metadata,
    )


health_job = dg.define_asset_job(
    "health_job",
    dg.AssetSelection.assets(ENDPOINT_HEALTH),
    description="Observe the endpoint's state, and what it did since the last observation.",
    tags={"stage": "serving", "dagster/max_runtime": 120},
)
endpoint_health_schedule = dg.ScheduleDefinition(
    name="endpoint_health_schedule",
    job=health_job,
    cron_schedule="*/10 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Observes endpoint_health every ten minutes.",
)
