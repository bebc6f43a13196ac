"""A request on its way to its answer: valid rows, who predicts on them, and what was predicted."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.serving.model_router import Version
from mlschool_dagster.serving.validation import Accepted


@dataclass(slots=True, eq=False)
class PredictionRequest:
    """One request that passed validation.

    ``event_ids`` has one id for each valid row; ``is_captured`` says whether the request belongs
    to the sample that is kept, ``is_named`` whether its caller chose the ids. Once predicted,
    ``captures`` holds the answers and ``shadow_captures`` the shadow's predictions for them.
    """

    role: Role
    version: Version
    shadow: Version | None
    accepted: Accepted
    event_ids: Sequence[str]
    is_captured: bool
    sampling_share: float
    is_named: bool = False
    captures: list[Capture] = field(default_factory=list)
    shadow_captures: list[Capture] = field(default_factory=list)

    def captures_of(
        self,
        version: Version,
        role: Role,
        probabilities: Sequence[Sequence[float]],
        endpoint: str,
        now: datetime,
    ) -> list[Capture]:
        """Predictions of `version` on the rows, as captures; `probabilities` has a row for each."""
        classes = version.model.spec.target.classes
        number, share = version.number, self.sampling_share
        captures = []
        for event_id, row, shares in zip(
            self.event_ids, self.accepted.rows, probabilities, strict=True
        ):
            confidence = max(shares)
            captures.append(
                Capture(
                    event_id,
                    now,
                    endpoint,
                    number,
                    row,
                    classes[shares.index(confidence)],
                    confidence,
                    dict(zip(classes, shares, strict=True)),
                    role,
                    share,
                )
            )
        return captures

    def settle(self, repeated: Mapping[str, Capture]) -> None:
        """Answer rows that were answered before as they were then."""
        if repeated:
            self.captures = [repeated.get(c.event_id, c) for c in self.captures]

    def answer(self) -> bytes:
        """The response's body: JSON with one prediction a row, null for a row left out."""
        predictions: list[Any] = [
            {
                "prediction": capture.prediction,
                "confidence": capture.confidence,
                "probabilities": capture.probabilities,
                "event_id": capture.event_id,
            }
            for capture in self.captures
        ]
        document: dict[str, Any] = {
            "predictions": predictions,
            "model_version": self.captures[0].model_version,
        }
        if self.accepted.faults:
            placed = dict(zip(self.accepted.positions, predictions, strict=True))
            document["predictions"] = [placed.get(i) for i in range(self.accepted.total)]
            document["faults"] = self.accepted.faults
        return orjson.dumps(document)


def new_event_ids(count: int) -> list[str]:
    """`count` new UUIDs of version 7 (RFC 9562): unique everywhere, and in order of time.

    Their order keeps a store's index on them growing at its end only. Those of one call count up
    from a random one (section 6.2, method 2).
    """
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    digits = os.urandom(9).hex()
    prefix = f"{milliseconds[:8]}-{milliseconds[8:]}-7{digits[:3]}-8{digits[3:6]}-"
    # Its highest bit is left for counting.
    first = int(digits[6:], 16) >> 1
    return [f"{prefix}{number:012x}" for number in range(first, first + count)]
