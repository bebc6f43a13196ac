"""How a canary is judged: by the requests that it answers, and those that it shadows."""

from collections.abc import Iterator
from datetime import datetime

from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import (
    Finding,
    Health,
    PairedEvidence,
    Verdict,
    not_worse,
    worse,
)


def judge_canary(
    evidence: PairedEvidence,
    health: Health,
    since: datetime,
    now: datetime,
    config: PromotionConfig,
) -> Verdict:
    """Whether the challenger, a canary since `since`, may answer all requests.

    Labels decide. Confidences of two models cannot be held against each other as labels can (what
    was trained on new data may doubt honestly where the old model errs boldly), so they only ever
    speak for a canary, and only when the labels have not come in time. A canary about which too
    little is known in time has failed: it was not shown to be as good.
    """
    late = now - since >= config.canary_patience
    finding, reason = next(
        (found for found in _findings(evidence, health, late, config)),
        (
            Finding.BAD if late else Finding.OPEN,
            f"{evidence.canary_rows} of {config.minimum_rows} rows answered by the canary, and "
            f"{evidence.labelled} labelled of {evidence.pairs} shadowed, do not show that it is at "
            f"most {config.margin:g} worse than the champion.",
        ),
    )
    return Verdict(finding, reason, {**evidence.figures(config.margin), **health.figures})


def _findings(
    evidence: PairedEvidence, health: Health, late: bool, config: PromotionConfig
) -> Iterator[tuple[Finding, str]]:
    """What can be said, the gravest first."""
    proof = 1 / config.alpha
    score = (
        f"On {evidence.labelled} labelled requests the challenger alone was right on "
        f"{evidence.gained}, the champion alone on {evidence.lost}"
    )
    if health.evidence(config.maximum_error_share) >= proof:
        yield Finding.BAD, health.sentence
    if worse(evidence.differences) >= proof:
        yield Finding.BAD, f"{score}: it is worse."
    if evidence.canary_rows < config.minimum_rows:
        return
    if not_worse(evidence.differences, config.margin) >= proof:
        yield Finding.GOOD, f"{score}: it is not worse by {config.margin:g}."
    if late and not_worse(evidence.confidence, config.margin) >= proof:
        yield (
            Finding.GOOD,
            f"{evidence.labelled} labelled requests do not decide in time; by the confidences on "
            f"{evidence.pairs} the challenger is not worse by {config.margin:g}.",
        )
