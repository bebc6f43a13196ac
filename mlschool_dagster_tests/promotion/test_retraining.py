"""When to retrain: only for what training can mend, not too soon, and with labels to learn from."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.promotion.config import BUDGET_PERIOD, PromotionConfig, gates, policy
from mlschool_dagster.promotion.retraining import SIGNALS, RetrainingDecision, decide_retraining
from mlschool_dagster.promotion.rollout import Gate, Rollout, Step
from mlschool_dagster.resources.promotion import PromotionPolicy
from mlschool_dagster_tests.promotion.samples import BEGINNING, CHAMPION, entry

NOW = BEGINNING + timedelta(days=30)
CONFIG = PromotionConfig()


def metric(name: MetricName, hours: int, *, finding: bool = True, rows: int = 100) -> Metric:
    window = Window.of(NOW - timedelta(hours=hours))
    accuracy = name in (MetricName.REALISED_ACCURACY, MetricName.ESTIMATED_ACCURACY)
    version = CHAMPION if accuracy else ""
    return Metric(window, name, 0.5, rows, version=version, finding=finding)


def drift(hours: int, *, own: float = 40.0, column: str = "a") -> list[Metric]:
    """Drift of a column that is confirmed in a window, whose own e-value is `own`."""
    confirmed = metric(MetricName.DRIFT_EVIDENCE, hours)
    of_column = replace(confirmed, column=column)
    e_value = replace(of_column, name=MetricName.DRIFT_E_VALUE, version=CHAMPION)
    return [confirmed, of_column, replace(e_value, value=own, finding=False)]


def sign(signal: MetricName, hours: int) -> list[Metric]:
    """The signal, found in a window."""
    return drift(hours) if signal is MetricName.DRIFT_EVIDENCE else [metric(signal, hours)]


LABELLED = [metric(MetricName.REALISED_ACCURACY, hours, finding=False) for hours in (6, 7)]


def ended(rollout: str, hours: float) -> Rollout:
    """A rollout of one hour that ended `hours` ago."""
    start = (NOW - BEGINNING) / timedelta(hours=1) - hours - 1
    return Rollout((entry(Step.REQUESTED, rollout, start), entry(Step.FAILED, rollout, start + 1)))


def trained(champion: str, challenger: str, drifted: Sequence[str], rollout: str) -> Rollout:
    """How `challenger` took the place of `champion` long ago, because of such drift."""
    requested = entry(Step.REQUESTED, rollout, champion=champion, drifted=["", *drifted])
    return Rollout((requested, replace(entry(Step.PROMOTED, rollout), version=challenger)))


def decision(
    metrics: Sequence[Metric], past: Sequence[Rollout] = (), config: PromotionConfig = CONFIG
) -> RetrainingDecision:
    return decide_retraining(metrics, CHAMPION, past, NOW, config)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_in_two_windows_retrains(signal: MetricName) -> None:
    found = decision([*LABELLED, *sign(signal, 3), *sign(signal, 2)])
    assert found.retrain
    assert found.details["champion"] == CHAMPION
    assert found.details["signals"] == [signal.value]
    assert found.details["windows"] == [
        Window.of(NOW - timedelta(hours=hours)).key for hours in (3, 2)
    ]
    assert all(key in found.reason for key in found.details["windows"])


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_in_one_window_does_not(signal: MetricName) -> None:
    found = decision([*LABELLED, *sign(signal, 3), metric(signal, 2, finding=False)])
    label = f"{signal.replace('_', ' ')} in {Window.of(NOW - timedelta(hours=3)).key}"
    reason = f"No degradation is confirmed yet ({label}): it takes 2 windows."
    assert (found.retrain, found.reason) == (False, reason)


def test_where_nothing_was_found_nothing_is_reported() -> None:
    assert decision(LABELLED).reason == "No degradation is confirmed."


def test_what_was_found_long_ago_and_is_over_counts_no_more() -> None:
    signal = MetricName.ESTIMATED_ACCURACY
    over = [metric(signal, hours, finding=hours > CONFIG.horizon) for hours in range(1, 12)]
    assert not decision([*LABELLED, *over]).retrain


def test_evidence_of_drift_that_only_remains_from_before_does_not_retrain() -> None:
    remaining = [found for hours in (4, 3, 2) for found in drift(hours, own=0.3)]
    assert not decision([*LABELLED, *remaining]).retrain
    assert decision([*LABELLED, *remaining, *drift(1), *drift(0)]).retrain


def test_drift_that_the_champion_was_trained_for_does_not_retrain_again() -> None:
    drifted = [found for hours in (3, 2) for found in drift(hours, column="a")]
    chain = [trained("8", "9", ["a"], "x"), trained("9", CHAMPION, ["b"], "y")]
    for past in (chain, [trained("9", CHAMPION, ["a"], "x")]):
        found = decision([*LABELLED, *drifted], past)
        assert not found.retrain
        assert "does not count: the champion was trained for it" in found.reason
    assert decision([*LABELLED, *drifted], [trained("8", "9", ["a"], "x")]).retrain


def test_other_drift_than_the_champion_was_trained_for_and_lost_accuracy_retrain() -> None:
    past = [trained("9", CHAMPION, ["a"], "x")]
    both = [found for hours in (3, 2) for column in "ab" for found in drift(hours, column=column)]
    found = decision([*LABELLED, *both], past)
    assert found.retrain
    assert found.details["drifted"] == ["", "a", "b"]
    worse = [metric(MetricName.ESTIMATED_ACCURACY, hours) for hours in (3, 2)]
    assert decision([*LABELLED, *drift(3), *drift(2), *worse], past).retrain


def test_one_column_or_segment_or_another_version_does_not_retrain() -> None:
    signal = MetricName.REALISED_ACCURACY
    canary = [replace(metric(signal, hours), segment="role=canary") for hours in (3, 2)]
    others = [replace(metric(signal, hours), version="7") for hours in (3, 2)]
    assert not decision([*LABELLED, *canary, *others]).retrain
    column = [replace(found, column="a column") for found in (*drift(3), *drift(2))]
    assert not decision([*LABELLED, *column]).retrain


def test_a_breach_of_quality_is_reported_and_hides_what_else_was_found() -> None:
    drifted = [found for hours in (4, 3, 2) for found in drift(hours)]
    breach = [metric(MetricName.QUALITY_FINDINGS, hours) for hours in (3, 2)]
    found = decision([*LABELLED, *drifted, *breach])
    assert not found.retrain
    assert "repair the source of the data" in found.reason
    assert not decision([*LABELLED, *breach]).retrain
    assert decision([*LABELLED, *drifted, breach[0]]).retrain


def test_without_labels_it_waits_for_them() -> None:
    drifted = [*drift(3), *drift(2)]
    found = decision([*drifted, metric(MetricName.REALISED_ACCURACY, 5, finding=False, rows=40)])
    assert not found.retrain
    assert "only 40 captures have labels: it waits for 100" in found.reason


DEGRADED = [*LABELLED, *drift(3), *drift(2)]


def test_it_cools_down_after_a_rollout() -> None:
    assert "has just ended" in decision(DEGRADED, [ended("a", 23)]).reason
    assert decision(DEGRADED, [ended("a", 25)]).retrain


def test_the_budget_is_held() -> None:
    past = [ended(name, hours) for name, hours in (("a", 100), ("b", 60), ("c", 30))]
    assert "budget of 3 rollouts in 7 days" in decision(DEGRADED, past).reason
    assert decision(DEGRADED, past[1:]).retrain


@given(pauses=st.lists(st.floats(0, 60), max_size=60), budget=st.integers(1, 4))
def test_no_week_has_more_rollouts_than_the_budget(pauses: list[float], budget: int) -> None:
    config = PromotionConfig(budget=budget, cooldown_hours=2)
    past: list[Rollout] = []
    hours = 0.0
    for pause in pauses:
        hours += pause
        now = BEGINNING + timedelta(hours=hours)
        if decide_retraining(DEGRADED, CHAMPION, past, now, config).retrain:
            name = str(len(past))
            steps = (entry(Step.REQUESTED, name, hours), entry(Step.FAILED, name, hours + 1))
            past.append(Rollout(steps))
            hours += 1
    begun = [rollout.entries[0].at for rollout in past]
    for first, late in zip(begun, begun[budget:], strict=False):
        assert late - first >= BUDGET_PERIOD
    for before, after in pairwise(past):
        assert after.entries[0].at - before.last.at >= config.cooldown


def test_approvals_are_listed_by_name() -> None:
    assert gates("") == frozenset()
    assert gates("canary, promotion") == {Gate.CANARY, Gate.PROMOTION}
    with pytest.raises(UserError, match="MLSCHOOL_APPROVALS is 'lunch'; list any of retraining"):
        gates("lunch")


def test_a_policy_that_can_never_be_met_is_refused() -> None:
    with pytest.raises(UserError, match="raise the horizon"):
        PromotionConfig(confirmations=7, horizon=6)


def test_a_policy_is_set_by_name_and_value() -> None:
    assert policy("") == {}
    values = policy("canary_share=0.2, minimum_rows = 500,cooldown_hours=2")
    assert values == {"canary_share": 0.2, "minimum_rows": 500, "cooldown_hours": 2.0}
    assert PromotionPolicy(approvals=["canary"], **values).config() == PromotionConfig(
        approvals=frozenset({Gate.CANARY}), canary_share=0.2, minimum_rows=500, cooldown_hours=2
    )


def test_each_field_of_the_policy_can_be_set_in_dagster_with_the_same_default() -> None:
    assert PromotionPolicy().config() == PromotionConfig()
    for name, declared in PromotionConfig.model_fields.items():
        shown = PromotionPolicy.model_fields[name]
        assert shown.description == declared.description
        assert shown.metadata == declared.metadata


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patience=1", "sets 'patience'; it can set: alpha, budget,"),
        ("approvals=canary", "sets 'approvals'; it can set: alpha, budget,"),
        ("canary_share=1.5", "has canary_share=1.5; input should be less than 1."),
        ("minimum_rows=many", "has minimum_rows=many; input should be a valid integer"),
        ("minimum_rows", "has minimum_rows=; input should be a valid integer"),
        ("horizon=1", "asks for 2 confirmations within 1 windows"),
    ],
)
def test_a_policy_that_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        policy(text)
