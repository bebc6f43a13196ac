"""Soak: a new primary is held against the old one in the same changed world."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import Conclusion, EndpointHealth, Verdict
from mlschool_dagster.promotion.soak import judge_soak
from mlschool_dagster_tests.promotion.samples import BEGINNING, CHALLENGER, CHAMPION

CONFIG = PromotionConfig()
QUIET = EndpointHealth()


def realised(version: str, hours: int, accuracy: float, rows: int = 200) -> Metric:
    """What labels said of `version`, `hours` after it was promoted."""
    window = Window.of(BEGINNING + timedelta(hours=hours))
    return Metric(window, MetricName.REALISED_ACCURACY, accuracy, rows, version=version)


def estimated(version: str, hours: int, accuracy: float) -> Metric:
    """What confidences say of `version`, give or take five in a hundred."""
    window = Window.of(BEGINNING + timedelta(hours=hours))
    return Metric(
        window,
        MetricName.ESTIMATED_ACCURACY,
        accuracy,
        200,
        version=version,
        lower=accuracy - 0.05,
        upper=accuracy + 0.05,
    )


def verdict(metrics: Sequence[Metric], hours: float, health: EndpointHealth = QUIET) -> Verdict:
    now = BEGINNING + timedelta(hours=hours)
    return judge_soak(metrics, CHAMPION, CHALLENGER, health, BEGINNING, now, CONFIG)


BEFORE = [realised(CHAMPION, hours, 0.8) for hours in (-2, -1)]


def test_windows_count_when_they_have_ended() -> None:
    metrics = [*BEFORE, *(realised(CHALLENGER, hours, 0.82) for hours in range(3))]
    assert verdict(metrics, 2.5).conclusion is Conclusion.UNDECIDED
    assert verdict(metrics, 3).conclusion is Conclusion.PASSED


@pytest.mark.parametrize(
    ("accuracy", "conclusion"),
    [(0.95, Conclusion.UNDECIDED), (0.78, Conclusion.UNDECIDED), (0.6, Conclusion.FAILED)],
)
def test_the_labels_of_one_window_tell_only_of_what_is_beyond_chance(
    accuracy: float, conclusion: Conclusion
) -> None:
    found = verdict([*BEFORE, realised(CHALLENGER, 0, accuracy)], 1)
    assert found.conclusion is conclusion
    assert found.figures["accuracy"] == pytest.approx(accuracy)
    assert found.figures["accuracy_before"] == pytest.approx(0.8)


def test_a_bad_champion_is_no_high_standard() -> None:
    """What is below the threshold may still be better than what was there."""
    before = [realised(CHAMPION, hours, 0.4) for hours in (-2, -1)]
    after = [realised(CHALLENGER, hours, 0.55) for hours in range(3)]
    assert verdict([*before, *after], 3).conclusion is Conclusion.PASSED


def test_without_labels_estimates_that_lie_below_all_before_tell() -> None:
    before = [estimated(CHAMPION, hours, 0.9) for hours in (-2, -1)]
    low = [estimated(CHALLENGER, hours, 0.7) for hours in range(2)]
    assert verdict([*before, low[0]], 1).conclusion is Conclusion.UNDECIDED
    worse = verdict([*before, *low], 2)
    assert worse.conclusion is Conclusion.FAILED
    assert "lies below that of version 1 before it in 2 windows" in worse.reason


def test_labels_overrule_estimates() -> None:
    before = [*BEFORE, estimated(CHAMPION, -1, 0.9)]
    low = [estimated(CHALLENGER, hours, 0.7) for hours in range(2)]
    assert (
        verdict([*before, *low, realised(CHALLENGER, 0, 0.85)], 2).conclusion
        is Conclusion.UNDECIDED
    )


def test_an_endpoint_that_fails_speaks_against_the_new_primary() -> None:
    failed = verdict(BEFORE, 1, EndpointHealth(1000, 60))
    assert failed.conclusion is Conclusion.FAILED
    assert failed.reason == "The endpoint failed to answer 60 of 1000 requests."


def test_nothing_before_to_hold_it_against_is_no_objection() -> None:
    after = [realised(CHALLENGER, hours, 0.5) for hours in range(3)]
    assert verdict(after, 3).conclusion is Conclusion.PASSED
