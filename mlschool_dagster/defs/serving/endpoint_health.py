"""The endpoint's health: what it did since it was last looked at, and whether that is well."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.defs.common import OWNERS, PlainConfig, plain_errors, undecided
from mlschool_dagster.defs.keys import ENDPOINT, ENDPOINT_HEALTH
from mlschool_dagster.defs.serving.endpoint import GROUP
from mlschool_dagster.resources.endpoint import LocalEndpointResource

if TYPE_CHECKING:
    from mlschool_dagster.deployment.activity import Reading, Traffic
    from mlschool_dagster.deployment.endpoint import EndpointStatus

READING = "reading"
_SEVERITY = {
    "up": dg.AssetCheckSeverity.ERROR,
    "error_share": dg.AssetCheckSeverity.WARN,
    "latency": dg.AssetCheckSeverity.WARN,
}
QUANTILES = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}


class HealthConfig(PlainConfig):
    """When the endpoint counts as unwell."""

    maximum_error_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of requests since the last look that may be answered 5xx.",
    )
    maximum_p99_seconds: float = Field(
        default=0.25,
        gt=0,
        description="Longest that all but one in a hundred requests since the last look may take.",
    )


endpoint_health = dg.AssetSpec(
    ENDPOINT_HEALTH,
    deps=[ENDPOINT],
    group_name=GROUP,
    kinds={"prometheus", "http"},
    owners=OWNERS,
    code_version="1",
    description="Whether the endpoint is up, which versions it serves, and what its metrics say of "
    "the time since the last observation: requests, errors, latency (seconds), memory (bytes), "
    "what waits to be captured. Observed by health_job.",
)


_CHECKS = {
    "up": "The endpoint that was deployed answers.",
    "error_share": "The endpoint failed to answer at most the configured share of requests.",
    "latency": "The 99th percentile of the time to answer is at most the configured one.",
}


@dg.multi_asset_check(
    name=ENDPOINT_HEALTH.to_user_string(),
    specs=[
        dg.AssetCheckSpec(name, asset=ENDPOINT_HEALTH, description=description)
        for name, description in _CHECKS.items()
    ],
)
def health_checks(
    context: dg.AssetCheckExecutionContext,
    config: HealthConfig,
    endpoint: LocalEndpointResource,
) -> Iterator[dg.AssetObservation | dg.AssetCheckResult]:
    """Observe the endpoint since the last observation, and check what was observed."""
    from mlschool_dagster.deployment.activity import read_metrics, traffic

    with plain_errors():
        target = endpoint.target()
        history = target.history()
        wanted = bool(history) and history[-1].plan.primary is not None
        status = target.status()
    exposition = endpoint.exposition() if status else None
    before = _last_reading(context.instance)
    if status is None or exposition is None:
        context.log.warning("the endpoint does not answer")
        yield dg.AssetObservation(ENDPOINT_HEALTH, metadata={"up": 0.0, READING: _kept(before)})
        yield from _absent(wanted)
        return
    now = read_metrics(exposition)
    recent = traffic(now, before)
    latency = _latency(recent)
    context.log.info(f"{recent.requests:g} requests since the last observation")
    yield dg.AssetObservation(
        ENDPOINT_HEALTH,
        metadata={
            "up": 1.0,
            **_serving(status),
            "requests": recent.requests,
            "refused": recent.refused,
            "errors": recent.errors,
            "error_share": recent.error_share,
            **latency,
            "requests_waiting": now.waiting,
            "spill_bytes": now.spilled,
            READING: _kept(now),
        },
    )
    yield _result("up", True, f"Version {status.version} answers.")
    yield _error_share(recent, config)
    yield _p99(latency, config)


def _last_reading(instance: dg.DagsterInstance) -> "Reading | None":
    from mlschool_dagster.deployment.activity import Reading

    records = instance.fetch_observations(ENDPOINT_HEALTH, limit=1).records
    observation = records[0].asset_observation if records else None
    kept: Any = observation.metadata[READING].value if observation else None
    return Reading.from_dict(kept) if kept else None


def _kept(reading: "Reading | None") -> dg.MetadataValue:
    return dg.MetadataValue.json(reading.to_dict() if reading else {})


def _serving(status: "EndpointStatus") -> dict[str, str | float]:
    from mlschool_dagster.deployment.activity import memory_bytes

    shown: dict[str, str | float] = {
        "version": status.version,
        "canary": status.canary or "none",
        "shadow": status.shadow or "none",
        "workers": float(status.details["workers"]),
    }
    # A server that something else keeps may run on another machine.
    if "pid" in status.details:
        shown["memory_bytes"] = memory_bytes(int(status.details["pid"]))
    return shown


def _latency(recent: "Traffic") -> dict[str, float]:
    from mlschool_dagster.deployment.activity import quantile

    known = {name: quantile(q, recent.latency) for name, q in QUANTILES.items()}
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def _absent(wanted: bool) -> Iterator[dg.AssetCheckResult]:
    told = "does not answer; materialize endpoint." if wanted else "has not been deployed yet."
    yield _result("up", not wanted, f"The endpoint {told}")
    for name in ("error_share", "latency"):
        told = "Nothing is known while the endpoint is not up."
        yield _result(name, True, told, undecided(True))


def _error_share(recent: "Traffic", config: HealthConfig) -> dg.AssetCheckResult:
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
    name: str, passed: bool, told: str, metadata: Mapping[str, float] = MappingProxyType({})
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=ENDPOINT_HEALTH,
        passed=passed,
        severity=_SEVERITY[name],
        description=told,
        metadata=metadata,
    )


health_job = dg.define_asset_job(
    "health_job",
    dg.AssetSelection.checks_for_assets(ENDPOINT_HEALTH),
    description="See how the endpoint does, and what it did since the last look.",
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
