"""The endpoint: which version serves, where, since when."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import NETWORK_RETRIES, OWNERS, plain_errors, table
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, InputValue
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.resources.endpoint import LocalEndpoint
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.targets.base import EndpointStatus, EndpointTarget

GROUP = "serving"


class DeploymentConfig(dg.Config):
    """Which version the endpoint is to serve."""

    version: str = Field(
        default="champion",
        description="champion, challenger, or the number of a registered version. While there is "
        "no champion yet, the challenger is served instead.",
    )


def endpoint(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``endpoint``: a registered version that answers requests."""

    @dg.asset(
        name="endpoint",
        deps=["registered_version"],
        group_name=GROUP,
        kinds={"http", "python"},
        owners=OWNERS,
        code_version="1",
        retry_policy=NETWORK_RETRIES,
        check_specs=[
            dg.AssetCheckSpec(
                "smoke_test",
                asset="endpoint",
                blocking=True,
                description="The endpoint answers samples of known class as expected; otherwise "
                "the version that served before serves again.",
            )
        ],
        description="The inference server and the version it serves. The version becomes the "
        "champion once it has answered the smoke test.",
    )
    def serving_endpoint(
        context: dg.AssetExecutionContext,
        config: DeploymentConfig,
        local_endpoint: LocalEndpoint,
        files: PlatformFiles,
        mlflow: MlflowTracking,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:  # type: ignore[type-arg]
        import pandas as pd

        from mlschool_dagster.modeling.evaluation import exemplars
        from mlschool_dagster.modeling.version_folder import REFERENCE_FILE

        with plain_errors():
            registry = mlflow.registry(spec.name)
            chosen = _choose(registry, config.version)
            target = local_endpoint.target()
            before = target.status()
            folder = registry.fetch(chosen, files.versions)
            status = target.deploy(chosen, folder, context.log.info)
            reference = pd.read_parquet(folder / REFERENCE_FILE)
            answers = _smoke_test(target, exemplars(reference, spec))
            wrong = [answer for answer in answers if answer["predicted"] != answer["expected"]]
            right = f"{len(answers) - len(wrong)} of {len(answers)} samples"
            yield dg.AssetCheckResult(
                check_name="smoke_test",
                passed=not wrong,
                description=f"{right} of known {spec.target.name} were answered as expected.",
                metadata={"answers": table(answers)},
            )
            if wrong:
                _restore(target, before, files, context.log.info)
                raise UserError(
                    f"Version {chosen} failed its smoke test ({right} right) and does not serve; "
                    "deploy another version."
                )
            registry.promote(chosen)
            context.log.info(f"version {chosen} passed its smoke test and is the champion")
            yield dg.MaterializeResult(
                metadata={
                    "version": status.version,
                    "url": dg.MetadataValue.url(status.url),
                    "since": dg.MetadataValue.timestamp(status.since),
                    "version_before": before.version if before else "none",
                    "mlflow": mlflow.link(f"models/{spec.name}/versions/{chosen}"),
                    **status.details,
                },
            )

    return serving_endpoint


def _choose(registry: "Registry", wanted: str) -> str:
    """The number of the version to serve; the first challenger needs no champion to beat."""
    if wanted == "champion" and not registry.has_alias("champion"):
        return registry.resolve("challenger").version
    return registry.resolve(wanted).version


def _smoke_test(
    target: "EndpointTarget", samples: Sequence[tuple[dict[str, InputValue], str]]
) -> list[dict[str, Any]]:
    """What the endpoint answers to `samples`, each beside what is expected."""
    rows = [row for row, _ in samples]
    answers = target.invoke(rows, f"{SMOKE_TEST_PREFIX}{uuid4()}")
    return [
        {**row, "expected": expected, "predicted": a.prediction, "confidence": a.confidence}
        for (row, expected), a in zip(samples, answers, strict=True)
    ]


def _restore(
    target: "EndpointTarget",
    before: "EndpointStatus | None",
    files: PlatformFiles,
    progress: Callable[[str], None],
) -> None:
    """Let the version before serve again; with none before, nothing is to serve."""
    if before is None:
        target.stop()
    else:
        target.deploy(before.version, files.versions / before.version, progress)
