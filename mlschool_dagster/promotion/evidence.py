"""Anytime-valid evidence: e-values, and the verdict on a canary.

A canary is judged whenever new data arrives, so that a p-value would reject sooner or later
whatever is true. An e-value is a bet against a hypothesis: while it holds, the probability that the
wealth ever reaches 1 / alpha is at most alpha, under any optional stopping (Ville 1939).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from mlschool_dagster.promotion.config import PromotionConfig

_BETS = tuple(step / 20 for step in range(1, 20))
"""Shares of the largest bet without risk of ruin; the wealth of all bets is averaged."""


def e_value(counts: Mapping[float, int], mean: float, lowest: float = -1.0) -> float:
    """The evidence that values have a larger mean than `mean`.

    ``counts`` maps each value, at least `lowest`, to its number of occurrences. The e-value is the
    wealth of bets on independent values with the same mean, mixed over the size of the bet
    (Waudby-Smith and Ramdas 2024). It does not depend on the order of the values, so that it can be
    recomputed from all of them.
    """
    logs = []
    for bet in _BETS:
        stake = bet / (mean - lowest)
        logs.append(
            sum(count * math.log1p(stake * (value - mean)) for value, count in counts.items())
        )
    # Beyond 500 a float would overflow, and nothing is left to decide.
    if max(logs) > 500:
        return math.exp(500)
    return sum(math.exp(log) for log in logs) / len(logs)


class Conclusion(StrEnum):
    """The conclusion of a verdict."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A conclusion, its reason in a sentence, and the figures behind it."""

    conclusion: Conclusion
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """Number of requests to the endpoint, and how many of them it failed to answer."""

    requests: float = 0.0
    errors: float = 0.0

    def evidence(self, maximum_error_share: float) -> float:
        """The e-value against failing at most that share of the requests."""
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
    """Champion and challenger on the same captured requests: one answered, the other replayed.

    The challenger answered ``canary_rows`` of the ``pairs`` rows, the champion the others. Both
    predict the same on ``agreeing``; of the ``labelled`` rows, the challenger alone was right on
    ``gained`` and the champion alone on ``lost``. ``confidence`` counts the pairs by the
    challenger's calibrated confidence less the champion's.
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
        """Number of labelled pairs by challenger right (1 or 0) less champion right."""
        return {
            1.0: self.gained,
            0.0: self.labelled - self.gained - self.lost,
            -1.0: self.lost,
        }

    def figures(self, margin: float) -> dict[str, float]:
        """The evidence as numbers for a table; shares only where there are rows."""
        figures = {
            name: float(value) for name, value in asdict(self).items() if name != "confidence"
        }
        figures["champion_rows"] = float(self.pairs - self.canary_rows)
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


def judge_canary(
    evidence: PairedEvidence,
    health: EndpointHealth,
    since: datetime,
    now: datetime,
    config: PromotionConfig,
) -> Verdict:
    """Whether the challenger, a canary since `since`, may answer all requests.

    Labels decide. Confidences of two models are not comparable as labels are (a model trained on
    new data may be rightly unsure where the old one is wrongly sure), so they can only pass a
    canary, never fail it, and only when too few labels have come within ``canary_patience``. A
    canary without a verdict by then has failed: it was not shown to be as good.
    """
    late = now - since >= config.canary_patience
    conclusion, reason = next(
        _conclusions(evidence, health, late, config),
        (
            Conclusion.FAILED if late else Conclusion.UNDECIDED,
            f"{evidence.canary_rows} of {config.minimum_rows} rows answered by the canary, and "
            f"{evidence.labelled} labelled of {evidence.pairs} replayed, do not show that it is at "
            f"most {config.margin:g} worse than the champion.",
        ),
    )
    return Verdict(conclusion, reason, {**evidence.figures(config.margin), **health.figures})


def _conclusions(
    evidence: PairedEvidence, health: EndpointHealth, late: bool, config: PromotionConfig
) -> Iterator[tuple[Conclusion, str]]:
    """The conclusions that the evidence supports, failures first."""
    proof = 1 / config.alpha
    score = (
        f"On {evidence.labelled} labelled requests the challenger alone was right on "
        f"{evidence.gained}, the champion alone on {evidence.lost}"
    )
    if health.evidence(config.maximum_error_share) >= proof:
        yield Conclusion.FAILED, health.sentence
    if worse(evidence.differences) >= proof:
        yield Conclusion.FAILED, f"{score}: it is worse."
    if evidence.canary_rows < config.minimum_rows:
        return
    if not_worse(evidence.differences, config.margin) >= proof:
        yield Conclusion.PASSED, f"{score}: it is not worse by {config.margin:g}."
    if late and not_worse(evidence.confidence, config.margin) >= proof:
        yield (
            Conclusion.PASSED,
            f"{evidence.labelled} labelled requests do not decide in time; by the confidences on "
            f"{evidence.pairs} the challenger is not worse by {config.margin:g}.",
        )


def _mean(counts: Mapping[float, int]) -> float:
    return sum(value * count for value, count in counts.items()) / sum(counts.values())
