"""Probation: a new primary is held against the old one in the same changed world."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import Finding, Health, Verdict
from mlschool_dagster.promotion.probation import judge_probation
from mlschool_dagster_tests.promotion.samples import BEGINNING, CHALLENGER, CHAMPION

CONFIG = PromotionConfig()
QUIET = Health()


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


def verdict(metrics: Sequence[Metric], hours: float, health: Health = QUIET) -> Verdict:
    now = BEGINNING + timedelta(hours=hours)
    return judge_probation(metrics, CHAMPION, CHALLENGER, health, BEGINNING, now, CONFIG)


BEFORE = [realised(CHAMPION, hours, 0.8) for hours in (-2, -1)]


def test_windows_count_when_they_have_ended() -> None:
    metrics = [*BEFORE, *(realised(CHALLENGER, hours, 0.82) for hours in range(3))]
    assert verdict(metrics, 2.5).finding is Finding.OPEN
    assert verdict(metrics, 3).finding is Finding.GOOD


@pytest.mark.parametrize(
    ("accuracy", "finding"), [(0.95, Finding.OPEN), (0.78, Finding.OPEN), (0.6, Finding.BAD)]
)
def test_the_labels_of_one_window_tell_only_of_what_is_beyond_chance(
    accuracy: float, finding: Finding
) -> None:
    found = verdict([*BEFORE, realised(CHALLENGER, 0, accuracy)], 1)
    assert found.finding is finding
    assert found.figures["accuracy"] == pytest.approx(accuracy)
    assert found.figures["accuracy_before"] == pytest.approx(0.8)


def test_a_bad_champion_is_no_high_standard() -> None:
    """What is below the threshold may still be better than what was there."""
    before = [realised(CHAMPION, hours, 0.4) for hours in (-2, -1)]
    after = [realised(CHALLENGER, hours, 0.55) for hours in range(3)]
    assert verdict([*before, *after], 3).finding is Finding.GOOD


def test_without_labels_estimates_that_lie_below_all_before_tell() -> None:
    before = [estimated(CHAMPION, hours, 0.9) for hours in (-2, -1)]
    low = [estimated(CHALLENGER, hours, 0.7) for hours in range(2)]
    assert verdict([*before, low[0]], 1).finding is Finding.OPEN
    worse = verdict([*before, *low], 2)
    assert worse.finding is Finding.BAD
    assert "lies below that of version 1 before it in 2 windows" in worse.reason


def test_labels_overrule_estimates() -> None:
    before = [*BEFORE, estimated(CHAMPION, -1, 0.9)]
    low = [estimated(CHALLENGER, hours, 0.7) for hours in range(2)]
    assert verdict([*before, *low, realised(CHALLENGER, 0, 0.85)], 2).finding is Finding.OPEN


def test_an_endpoint_that_fails_speaks_against_the_new_primary() -> None:
    failed = verdict(BEFORE, 1, Health(1000, 60))
    assert failed.finding is Finding.BAD
    assert failed.reason == "The endpoint failed to answer 60 of 1000 requests."


def test_nothing_before_to_hold_it_against_is_no_objection() -> None:
    after = [realised(CHALLENGER, hours, 0.5) for hours in range(3)]
    assert verdict(after, 3).finding is Finding.GOOD
