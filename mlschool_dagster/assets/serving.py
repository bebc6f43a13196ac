"""The endpoint: which version serves, where, since when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import NETWORK_RETRIES, OWNERS, plain_errors, table
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.resources.endpoint import LocalEndpoint
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster.values import InputValue

if TYPE_CHECKING:
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.targets.base import EndpointTarget

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
            reference = pd.read_parquet(folder / REFERENCE_FILE)
            smoke_test = _SmokeTest(target, exemplars(reference, spec))
            try:
                status = target.deploy(chosen, folder, context.log.info, smoke_test.verify)
            except UserError:
                if smoke_test.answers:
                    yield smoke_test.result()
                raise
            yield smoke_test.result()
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


@dataclass
class _SmokeTest:
    """Samples of known class, and what the endpoint answered to them."""

    target: "EndpointTarget"
    samples: Sequence[tuple[dict[str, InputValue], str]]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def verify(self) -> None:
        """Send the samples.

        Raises:
            UserError: an answer is not the expected one, or there is no sample to send.
        """
        if not self.samples:
            raise UserError(
                "The version got no complete row of its own training data right, so that it cannot "
                "be tested and does not serve; train a better one."
            )
        predictions = self.target.invoke(
            [row for row, _ in self.samples], f"{SMOKE_TEST_PREFIX}{uuid4()}"
        )
        self.answers = [
            {**row, "expected": expected, "predicted": p.prediction, "confidence": p.confidence}
            for (row, expected), p in zip(self.samples, predictions, strict=True)
        ]
        if self.wrong:
            raise UserError(
                f"The version failed its smoke test ({self.wrong} of {len(self.answers)} samples "
                "wrong) and does not serve; deploy another version."
            )

    @property
    def wrong(self) -> int:
        """How many answers are not the expected ones."""
        return sum(answer["predicted"] != answer["expected"] for answer in self.answers)

    def result(self) -> dg.AssetCheckResult:
        """The outcome as an asset check."""
        right = len(self.answers) - self.wrong
        return dg.AssetCheckResult(
            check_name="smoke_test",
            passed=not self.wrong,
            description=f"{right} of {len(self.answers)} samples of known class were answered as "
            "expected.",
            metadata={"answers": table(self.answers)},
        )
