"""The endpoint: which versions serve, where, since when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import NETWORK_RETRIES, OWNERS, PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import DEPLOYMENT_LEDGER, ENDPOINT, REGISTERED_VERSION
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.deployment.endpoint import EndpointStatus, Invoke
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.serving.desired_state import Deployment, Plan, Release

GROUP = "serving"
PREVIOUS = "previous"
CHECK = "smoke_test"
TOLERANCE = 1e-3
"""Largest difference of a probability from the trained network's, whose single precision differs
by 1e-6 between CPUs."""


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


@dataclass
class SmokeTest:
    """Samples of what each new version was trained on, and the answers to them."""

    answers: list[dict[str, Any]] = field(default_factory=list)

    def verify(self, release: "Release", invoke: "Invoke") -> None:
        """Have `release` answer the samples in its folder.

        Raises:
            UserError: an answer is not the trained network's, or there is no sample to send.
        """
        from mlschool_dagster.modeling.version_folder import read_samples

        samples = read_samples(release.folder)
        predictions = invoke([sample.inputs for sample in samples])
        answers = [
            {
                "version": release.version,
                **sample.inputs,
                "expected": sample.prediction,
                "expected_confidence": sample.confidence,
                "predicted": answer.prediction,
                "confidence": answer.confidence,
                "as_expected": abs(answer.probabilities[sample.prediction] - sample.confidence)
                <= TOLERANCE,
            }
            for sample, answer in zip(samples, predictions, strict=True)
        ]
        self.answers.extend(answers)
        if wrong := sum(not answer["as_expected"] for answer in answers):
            raise UserError(
                f"Version {release.version} failed its smoke test ({wrong} of {len(answers)} "
                "samples are not answered as by the trained network) and does not serve; deploy "
                "another version."
            )

    def result(self) -> dg.AssetCheckResult:
        """The outcome as an asset check."""
        count = len(self.answers)
        right = sum(answer["as_expected"] for answer in self.answers)
        return dg.AssetCheckResult(
            check_name=CHECK,
            passed=right == count,
            description=f"{right} of {count} samples were answered as by the trained network."
            if count
            else "No version is new; each was tested before it took traffic.",
            metadata={"answers": table(self.answers)},
        )


def build_endpoint(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``endpoint``: registered versions that answer requests."""

    @dg.asset(
        key=ENDPOINT,
        deps=[REGISTERED_VERSION],
        group_name=GROUP,
        kinds={"http", "python"},
        owners=OWNERS,
        code_version="2",
        retry_policy=NETWORK_RETRIES,
        check_specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=ENDPOINT,
                blocking=True,
                description="Each new version answers samples as the network did when it was "
                "trained, before it takes any traffic; otherwise what served before serves on.",
            )
        ],
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


deployment_job = dg.define_asset_job(
    "deployment_job",
    dg.AssetSelection.assets(ENDPOINT, DEPLOYMENT_LEDGER),
    description="Let the endpoint serve a version: the champion unless configured; with a canary "
    "and a shadow if there are to be any.",
    tags={"stage": "serving", "dagster/max_runtime": 600},
)
rollback_job = dg.define_asset_job(
    "rollback_job",
    dg.AssetSelection.assets(ENDPOINT, DEPLOYMENT_LEDGER),
    description="Let the primary before the present one serve again, alone. It needs no "
    "configuration.",
    config={"ops": {"endpoint": {"config": {"version": PREVIOUS, "reason": "roll back"}}}},
    tags={"stage": "serving", "dagster/max_runtime": 600},
)
