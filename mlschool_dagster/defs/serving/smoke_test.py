"""The smoke test: no version takes traffic before it answers samples as its trained network did."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlschool_dagster.defs.common import table
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    from mlschool_dagster.deployment.endpoint import Invoke
    from mlschool_dagster.serving.desired_state import Release

CHECK = "smoke_test"
TOLERANCE = 1e-3
"""Largest difference of a probability from the trained network's, whose single precision differs
by 1e-6 between CPUs."""


def smoke_test_spec(asset: str) -> dg.AssetCheckSpec:
    """The blocking check on `asset` that a `SmokeTest` gives its result to."""
    return dg.AssetCheckSpec(
        CHECK,
        asset=asset,
        blocking=True,
        description="Each new version answers samples as the network did when it was trained, "
        "before it takes any traffic; otherwise what served before serves on.",
    )


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
