"""Evidence: wrong claims stay rare however often one looks, and right ones come soon."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import (
    Conclusion,
    EndpointHealth,
    PairedEvidence,
    Verdict,
    e_value,
    judge_canary,
    not_worse,
    worse,
)
from mlschool_dagster_tests.promotion.samples import BEGINNING

CONFIG = PromotionConfig()
PROOF = 1 / CONFIG.alpha
QUIET = EndpointHealth()


def paired(gained: int, lost: int, labelled: int, rows: int = 500) -> PairedEvidence:
    return PairedEvidence(
        canary_rows=rows,
        pairs=labelled,
        agreeing=labelled - gained - lost,
        labelled=labelled,
        gained=gained,
        lost=lost,
        confidence={0.0: labelled},
    )


def verdict(evidence: PairedEvidence, health: EndpointHealth = QUIET, hours: float = 1) -> Verdict:
    return judge_canary(evidence, health, BEGINNING, BEGINNING + timedelta(hours=hours), CONFIG)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_counts_of_any_size_have_an_e_value(gained: int, same: int, lost: int) -> None:
    evidence = e_value({1.0: gained, 0.0: same, -1.0: lost}, 0.0)
    assert 0 <= evidence < float("inf")
    assert gained > lost or evidence < PROOF


def test_without_observations_there_is_no_evidence() -> None:
    assert e_value({}, 0.0) == pytest.approx(1)


@pytest.mark.parametrize(("claim", "difference"), [("worse", 0.0), ("not worse", -0.05)])
def test_a_wrong_claim_is_made_by_few_of_those_who_look_after_each_label(
    claim: str, difference: float
) -> None:
    generator = np.random.default_rng(5)
    shares = [0.1 + difference / 2, 0.8, 0.1 - difference / 2]
    claimed = 0
    for _ in range(200):
        drawn = generator.choice([1, 0, -1], p=shares, size=400)
        gained, lost = (drawn == 1).cumsum(), (drawn == -1).cumsum()
        looks = [
            {1.0: int(gained[n]), 0.0: int(n + 1 - gained[n] - lost[n]), -1.0: int(lost[n])}
            for n in range(0, 400, 10)
        ]
        evidence = [worse(look) if claim == "worse" else not_worse(look, 0.05) for look in looks]
        claimed += max(evidence) >= PROOF
    # At most 10 are to be expected; 17 or more come by chance once in fifty such tests.
    assert claimed <= 16


def test_a_canary_that_is_as_good_passes_with_some_hundred_labels() -> None:
    assert verdict(paired(gained=6, lost=6, labelled=300)).conclusion is Conclusion.PASSED
    assert verdict(paired(gained=0, lost=0, labelled=100)).conclusion is Conclusion.PASSED
    assert verdict(paired(gained=40, lost=5, labelled=150)).conclusion is Conclusion.PASSED


def test_a_canary_that_is_worse_fails_soon() -> None:
    failed = verdict(paired(gained=1, lost=20, labelled=100))
    assert failed.conclusion is Conclusion.FAILED
    assert "was right on 1, the champion alone on 20: it is worse" in failed.reason


def test_few_labels_leave_it_open_until_patience_ends() -> None:
    evidence = paired(gained=1, lost=1, labelled=20)
    assert verdict(evidence).conclusion is Conclusion.UNDECIDED
    assert verdict(evidence, hours=25).conclusion is Conclusion.FAILED


def test_confidences_speak_only_when_labels_did_not_come_in_time() -> None:
    evidence = PairedEvidence(canary_rows=500, pairs=500, confidence={0.01: 400, -0.02: 100})
    assert verdict(evidence).conclusion is Conclusion.UNDECIDED
    late = verdict(evidence, hours=25)
    assert late.conclusion is Conclusion.PASSED
    assert "by the confidences on 500" in late.reason


def test_a_canary_must_have_answered_enough_itself() -> None:
    assert (
        verdict(paired(gained=90, lost=0, labelled=300, rows=99)).conclusion is Conclusion.UNDECIDED
    )


def test_an_endpoint_that_fails_speaks_against_the_canary() -> None:
    evidence = paired(gained=40, lost=5, labelled=150)
    assert verdict(evidence, EndpointHealth(1000, 5)).conclusion is Conclusion.PASSED
    failed = verdict(evidence, EndpointHealth(1000, 40))
    assert failed.conclusion is Conclusion.FAILED
    assert failed.reason == "The endpoint failed to answer 40 of 1000 requests."


def test_the_figures_are_floats() -> None:
    figures = verdict(paired(gained=40, lost=5, labelled=150), EndpointHealth(10, 0)).figures
    assert all(isinstance(value, float) for value in figures.values())
    assert figures["agreement"] == pytest.approx(0.7)
