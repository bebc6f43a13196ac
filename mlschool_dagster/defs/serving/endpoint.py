"""The endpoint: which versions serve, where, since when."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import NETWORK_RETRIES, OWNERS, PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import DEPLOYMENT_LEDGER, ENDPOINT, REGISTERED_VERSION
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.deployment.endpoint import Invoke, VersionFiles
    from mlschool_dagster.deployment.ledger import DeploymentEntry
    from mlschool_dagster.deployment.plan import Capabilities, Plan
    from mlschool_dagster.modeling.registry import Registry

GROUP = "serving"
PREVIOUS = "previous"
POOL = "endpoint"
"""The pool of runs that change the endpoint: one at a time."""
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
        description="Version that predicts on requests and never answers, named alike; empty: "
        "none.",
    )
    shadow_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the requests that the shadow predicts on, if there is one; if it is "
        "not set, as many as the endpoint allows.",
    )
    sampling_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the requests that are captured; if it is not set, as it is now, at "
        "first all.",
    )
    reason: str = Field(default="", description="Why; the ledger keeps it.")


class TeardownConfig(PlainConfig):
    """Why the endpoint is removed."""

    reason: str = Field(default="", description="Why; the ledger keeps it.")


@dataclass
class SmokeTest:
    """Samples of what each new version was trained on, and the answers to them."""

    files: "Mapping[str, VersionFiles]"
    answers: list[dict[str, Any]] = field(default_factory=list)

    def verify(self, version: str, invoke: "Invoke") -> None:
        """Have `version` answer the samples among its files.

        Raises:
            UserError: an answer is not the trained network's, or there is no sample to send.
        """
        from mlschool_dagster.modeling.version_folder import read_samples

        samples = read_samples(self.files[version].folder)
        predictions = invoke([sample.inputs for sample in samples])
        answers = [
            {
                "version": version,
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
                f"Version {version} failed its smoke test ({wrong} of {len(answers)} "
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
        pool=POOL,
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
        endpoint: EndpointResource,
        files: PlatformFiles,
        history: History,
        mlflow: MlflowTracking,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:  # type: ignore[type-arg]
        from mlschool_dagster.deployment.ledger import serving_plan
        from mlschool_dagster.deployment.recorded import RecordedEndpoint

        with plain_errors(), history.deployments(endpoint.name) as ledger:
            registry = mlflow.registry(spec.name)
            recorded = RecordedEndpoint(endpoint.connect(), ledger)
            recorded.observe()
            entries = ledger.entries()
            before = serving_plan(entries)
            capabilities = recorded.endpoint.capabilities
            plan = _plan(config, registry, entries, capabilities)
            capabilities.require(plan)
            versions = {
                version: _version_files(version, registry, files) for version in plan.versions
            }
            smoke_test = SmokeTest(versions)
            try:
                status = recorded.deploy(
                    plan,
                    versions,
                    by=context.run.run_id,
                    reason=config.reason,
                    verify=smoke_test.verify,
                    progress=context.log.info,
                )
            except UserError:
                if smoke_test.answers:
                    yield smoke_test.result()
                raise
            yield smoke_test.result()
            registry.promote(plan.primary)
            context.log.info(f"version {plan.primary} serves and is the champion")
            yield dg.MaterializeResult(
                metadata={
                    **roles(plan),
                    "plan": plan.digest,
                    "version_before": before.primary if before else "none",
                    "url": dg.MetadataValue.url(status.url),
                    **({"since": dg.MetadataValue.timestamp(status.since)} if status.since else {}),
                    **({"console": dg.MetadataValue.url(status.console)} if status.console else {}),
                    "mlflow": mlflow.link(f"models/{spec.name}/versions/{plan.primary}"),
                    **status.details,
                },
            )

    return serving_endpoint


def _version_files(version: str, registry: "Registry", files: PlatformFiles) -> "VersionFiles":
    """The folder of a version, fetched, and the URI at which it was published."""
    from mlschool_dagster.deployment.endpoint import VersionFiles
    from mlschool_dagster.modeling.registry import PUBLISHED_TAG

    folder = registry.fetch(version, files.versions)
    uri = registry.resolve(version).tags.get(PUBLISHED_TAG)
    return VersionFiles(folder, uri) if uri else VersionFiles.of(folder)


def _plan(
    config: DeploymentConfig,
    registry: "Registry",
    entries: "Sequence[DeploymentEntry]",
    capabilities: "Capabilities",
) -> "Plan":
    from mlschool_dagster.deployment.ledger import serving_plan
    from mlschool_dagster.deployment.plan import Plan

    present = serving_plan(entries)
    shadow_share = config.shadow_share or capabilities.largest_shadow_share
    return Plan(
        primary=_number(config.version, registry, entries),
        canary=_number(config.canary, registry, entries) if config.canary else None,
        canary_share=config.canary_share if config.canary else 0.0,
        shadow=_number(config.shadow, registry, entries) if config.shadow else None,
        shadow_share=shadow_share if config.shadow else 0.0,
        sampling_share=config.sampling_share or (present.sampling_share if present else 1.0),
    )


def _number(name: str, registry: "Registry", entries: "Sequence[DeploymentEntry]") -> str:
    """The version that `name` stands for; the first challenger needs no champion to beat."""
    from mlschool_dagster.deployment.ledger import previous_primary

    if name == PREVIOUS:
        previous = previous_primary(entries)
        if previous is None:
            raise UserError(
                "No other version has served before the present one, so that there is nothing to "
                "roll back to; deploy a version by its number."
            )
        name = previous
    elif name == "champion" and not registry.has_alias("champion"):
        name = "challenger"
    return registry.resolve(name).version


def roles(plan: "Plan | None") -> dict[str, str | float]:
    """The versions and shares of `plan`, as metadata."""
    if plan is None:
        return {"version": "none", "canary": "none", "shadow": "none"}
    return {
        "version": plan.primary,
        "canary": plan.canary or "none",
        "canary_share": plan.canary_share,
        "shadow": plan.shadow or "none",
        "shadow_share": plan.shadow_share,
        "sampling_share": plan.sampling_share,
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


@dg.op(name="teardown", pool=POOL)
def remove_endpoint(
    context: dg.OpExecutionContext,
    config: TeardownConfig,
    endpoint: EndpointResource,
    history: History,
) -> None:
    """Remove the endpoint and whatever it costs, and record that in the ledger."""
    from mlschool_dagster.deployment.recorded import RecordedEndpoint

    with plain_errors(), history.deployments(endpoint.name) as ledger:
        RecordedEndpoint(endpoint.connect(), ledger).teardown(
            by=context.run_id, reason=config.reason, progress=context.log.info
        )


@dg.job(
    tags={"stage": "serving", "dagster/max_runtime": 3600},
    executor_def=dg.in_process_executor,
)
def teardown_job() -> None:
    """Remove the endpoint: a managed one is deleted, a local server is stopped.

    It serves again after the next deployment. Captures, versions and ledgers stay.
    """
    remove_endpoint()


@dg.op(name="preflight")
def check_endpoint(context: dg.OpExecutionContext, endpoint: EndpointResource) -> None:
    """Check the preconditions of a deployment; each finding names the command that resolves it."""
    with plain_errors():
        findings = endpoint.connect().preflight()
        if findings:
            raise UserError(
                "\n".join(f"{finding.problem} To mend it: {finding.remedy}" for finding in findings)
            )
    context.log.info("nothing is missing for a deployment")


@dg.job(
    tags={"stage": "serving", "dagster/max_runtime": 600},
    executor_def=dg.in_process_executor,
)
def preflight_job() -> None:
    """Check what a deployment would fail on, before one is made: nothing is changed."""
    check_endpoint()
