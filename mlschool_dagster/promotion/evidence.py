"""Evidence that may be looked at again and again: e-values, and the verdicts that rest on them.

A canary is judged whenever something has landed, so that a p-value would reject sooner or later
whatever is true. An e-value is a bet against a hypothesis: as long as that holds, the chance that
its capital ever reaches 1 / alpha is at most alpha (Ville 1939), whenever one looks and stops.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

_BETS = tuple(step / 20 for step in range(1, 20))
"""Shares of the largest bet that cannot ruin; their capitals are averaged."""


def e_value(counts: Mapping[float, int], mean: float, lowest: float = -1.0) -> float:
    """The evidence that values have a larger mean than `mean`.

    ``counts`` says how often each value, at least `lowest`, was seen. It is the capital of bets
    on independent values with the same mean (Waudby-Smith and Ramdas 2024), mixed over their size;
    the order of the values does not matter, so that it can be computed anew from all of them.
    """
    capitals = []
    for bet in _BETS:
        stake = bet / (mean - lowest)
        capitals.append(
            sum(count * math.log1p(stake * (value - mean)) for value, count in counts.items())
        )
    largest = max(capitals)
    # Beyond this a float would overflow, and nobody doubts any more.
    if largest > 500:
        return math.exp(500)
    return sum(math.exp(capital) for capital in capitals) / len(capitals)


class Finding(StrEnum):
    """What a look at the evidence came to."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding, why in a sentence, and the figures that it rests on."""

    finding: Finding
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """How many requests the endpoint had, and how many of them it failed to answer."""

    requests: float = 0.0
    errors: float = 0.0

    def evidence(self, maximum_error_share: float) -> float:
        """The e-value against failing at most that share."""
        counts = {0.0: round(self.requests - self.errors), 1.0: round(self.errors)}
        return e_value(counts, maximum_error_share, lowest=0.0)

    @property
    def sentence(self) -> str:
        """The counts in words."""
        return f"The endpoint failed to answer {self.errors:g} of {self.requests:g} requests."

    @property
    def figures(self) -> dict[str, float]:
        """The counts by name."""
        return {"requests": float(self.requests), "request_errors": float(self.errors)}


@dataclass(frozen=True, slots=True)
class PairedEvidence:
    """Champion and challenger on the same requests, as answer and as shadow.

    ``canary_rows`` rows were answered by the challenger itself. Of ``pairs`` rows that the champion
    answered and the challenger shadowed, they agree on ``agreeing``; of the ``labelled`` ones, the
    challenger alone was right on ``gained`` and the champion alone on ``lost``. ``confidence``
    counts the pairs by the challenger's confidence less the champion's.
    """

    canary_rows: int = 0
    pairs: int = 0
    agreeing: int = 0
    labelled: int = 0
    gained: int = 0
    lost: int = 0
    confidence: Mapping[float, int] = field(default_factory=dict)

    @property
    def differences(self) -> dict[float, int]:
        """The labelled pairs by how much more often the challenger is right."""
        return {
            1.0: self.gained,
            0.0: self.labelled - self.gained - self.lost,
            -1.0: self.lost,
        }

    def figures(self, margin: float) -> dict[str, float]:
        """The evidence as numbers for a table; accuracies are shares, None without rows."""
        figures = {
            name: float(value) for name, value in asdict(self).items() if name != "confidence"
        }
        figures["e_value_not_worse"] = not_worse(self.differences, margin)
        figures["e_value_worse"] = worse(self.differences)
        if self.pairs:
            figures["agreement"] = self.agreeing / self.pairs
            figures["estimated_difference"] = _mean(self.confidence)
            figures["estimated_e_value_not_worse"] = not_worse(self.confidence, margin)
        if self.labelled:
            figures["realised_difference"] = (self.gained - self.lost) / self.labelled
        return figures


def not_worse(differences: Mapping[float, int], margin: float) -> float:
    """The e-value against the challenger being worse by `margin` or more."""
    return e_value(differences, -margin)


def worse(differences: Mapping[float, int]) -> float:
    """The e-value against the challenger being at least as good."""
    return e_value({-value: count for value, count in differences.items()}, 0.0)


def _mean(counts: Mapping[float, int]) -> float:
    return sum(value * count for value, count in counts.items()) / sum(counts.values())
