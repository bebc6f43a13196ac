"""The smoke test: no version takes traffic before it has answered samples of known class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlschool_dagster.assets.common import table
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec

if TYPE_CHECKING:
    from mlschool_dagster.serving.deployment import Release
    from mlschool_dagster.targets.base import Invoke

CHECK = "smoke_test"


def smoke_test_spec(asset: str) -> dg.AssetCheckSpec:
    """The blocking check on `asset` that a `SmokeTest` gives its result to."""
    return dg.AssetCheckSpec(
        CHECK,
        asset=asset,
        blocking=True,
        description="Each new version answers samples of known class as expected, before it takes "
        "any traffic; otherwise what served before serves on.",
    )


@dataclass
class SmokeTest:
    """Samples of known class, from what each version was trained on, and the answers to them."""

    spec: DataSpec
    answers: list[dict[str, Any]] = field(default_factory=list)

    def verify(self, release: "Release", invoke: "Invoke") -> None:
        """Have `release` answer the most telling sample of each class.

        Raises:
            UserError: an answer is not the expected one, or there is no sample to send.
        """
        import pandas as pd

        from mlschool_dagster.modeling.evaluation import exemplars
        from mlschool_dagster.modeling.version_folder import REFERENCE_FILE

        samples = exemplars(pd.read_parquet(release.folder / REFERENCE_FILE), self.spec)
        if not samples:
            raise UserError(
                f"Version {release.version} got no complete row of its own training data right, so "
                "that it cannot be tested and does not serve; train a better one."
            )
        predictions = invoke([row for row, _ in samples])
        answers = [
            {
                "version": release.version,
                **row,
                "expected": expected,
                "predicted": p.prediction,
                "confidence": p.confidence,
            }
            for (row, expected), p in zip(samples, predictions, strict=True)
        ]
        self.answers.extend(answers)
        if wrong := _wrong(answers):
            raise UserError(
                f"Version {release.version} failed its smoke test ({wrong} of {len(answers)} "
                "samples wrong) and does not serve; deploy another version."
            )

    def result(self) -> dg.AssetCheckResult:
        """The outcome as an asset check."""
        wrong, count = _wrong(self.answers), len(self.answers)
        return dg.AssetCheckResult(
            check_name=CHECK,
            passed=not wrong,
            description=f"{count - wrong} of {count} samples of known class were answered as "
            "expected."
            if count
            else "No version is new; each was tested before it took traffic.",
            metadata={"answers": table(self.answers)},
        )


def _wrong(answers: Sequence[dict[str, Any]]) -> int:
    """How many of `answers` are not the expected ones."""
    return sum(answer["predicted"] != answer["expected"] for answer in answers)
