"""The endpoint: which versions serve, where, since when."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import NETWORK_RETRIES, OWNERS, PlainConfig, plain_errors
from mlschool_dagster.defs.serving.smoke_test import SmokeTest, smoke_test_spec
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.deployment.endpoint import EndpointStatus
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.serving.desired_state import Deployment, Plan, Release

GROUP = "serving"
PREVIOUS = "previous"


class DeploymentConfig(PlainConfig):
    """Which versions the endpoint is to serve, and in which role."""

    version: str = Field(
        default="champion",
        description="The primary: champion, challenger, previous (the primary before the present "
        "one), or the number of a registered version. While there is no champion yet, the "
        "challenger is served instead.",
    )
    canary: str = Field(
        default="",
        description="Version that answers a share of the requests beside the primary, named alike; "
        "empty: none.",
    )
    canary_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Share of the requests that the canary answers, if there is one.",
    )
    shadow: str = Field(
        default="",
        description="Version that predicts on every captured request and never answers, named "
        "alike; empty: none.",
    )
    sampling_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the requests that are captured; if it is not set, as it is now, at "
        "first all.",
    )
    reason: str = Field(default="", description="Why; the ledger keeps it.")


def endpoint(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``endpoint``: registered versions that answer requests."""

    @dg.asset(
        name="endpoint",
        deps=["registered_version"],
        group_name=GROUP,
        kinds={"http", "python"},
        owners=OWNERS,
        code_version="2",
        retry_policy=NETWORK_RETRIES,
        check_specs=[smoke_test_spec("endpoint")],
        description="The inference server and the versions it serves: the primary, and perhaps a "
        "canary and a shadow. The primary becomes the champion once every worker serves it.",
    )
    def serving_endpoint(
        context: dg.AssetExecutionContext,
        config: DeploymentConfig,
        endpoint: LocalEndpointResource,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:  # type: ignore[type-arg]
        with plain_errors():
            registry = mlflow.registry(spec.name)
            target = endpoint.target()
            history = target.history()
            plan = _plan(config, registry, files, history)
            smoke_test = SmokeTest()
            try:
                status = target.deploy(
                    plan, context.run.run_id, config.reason, context.log.info, smoke_test.verify
                )
            except UserError:
                if smoke_test.answers:
                    yield smoke_test.result()
                raise
            yield smoke_test.result()
            registry.promote(status.version)
            context.log.info(f"version {status.version} serves and is the champion")
            yield dg.MaterializeResult(
                metadata={
                    **_roles(status),
                    "version_before": _primary(history),
                    "url": dg.MetadataValue.url(status.url),
                    "since": dg.MetadataValue.timestamp(status.since),
                    "mlflow": mlflow.link(f"models/{spec.name}/versions/{status.version}"),
                    **status.details,
                },
            )

    return serving_endpoint


def _plan(
    config: DeploymentConfig,
    registry: "Registry",
    files: PlatformFiles,
    history: "Sequence[Deployment]",
) -> "Plan":
    from mlschool_dagster.serving.desired_state import Plan

    def release(wanted: str) -> "Release":
        return _release(wanted, registry, files, history)

    present = history[-1].plan if history else Plan(None)
    plan = Plan(
        primary=release(config.version),
        canary=release(config.canary) if config.canary else None,
        canary_share=config.canary_share if config.canary else 0.0,
        shadow=release(config.shadow) if config.shadow else None,
        sampling_share=config.sampling_share or present.sampling_share,
    )
    for role, other in (("canary", plan.canary), ("shadow", plan.shadow)):
        if other is not None and other == plan.primary:
            raise UserError(
                f"Version {other.version} cannot be the {role} of itself; name another version."
            )
    return plan


def _release(
    wanted: str, registry: "Registry", files: PlatformFiles, history: "Sequence[Deployment]"
) -> "Release":
    """The version to serve, with its files; the first challenger needs no champion to beat."""
    from mlschool_dagster.serving.desired_state import Release, previous_primary

    if wanted == PREVIOUS:
        previous = previous_primary(history)
        if previous is None:
            raise UserError(
                "No other version has served before the present one, so that there is nothing to "
                "roll back to; deploy a version by its number."
            )
        wanted = previous.version
    elif wanted == "champion" and not registry.has_alias("champion"):
        wanted = "challenger"
    version = registry.resolve(wanted).version
    return Release(version, registry.fetch(version, files.versions))


def _primary(history: "Sequence[Deployment]") -> str:
    present = history[-1].plan.primary if history else None
    return present.version if present else "none"


def _roles(status: "EndpointStatus") -> dict[str, str | float]:
    return {
        "version": status.version,
        "canary": status.canary or "none",
        "canary_share": status.canary_share,
        "shadow": status.shadow or "none",
        "sampling_share": status.sampling_share,
    }
