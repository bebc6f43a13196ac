"""Segments are counted one by one, small ones pooled, and the worst named only beyond chance."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.monitoring.performance import PerformanceReport, performance
from mlschool_dagster.monitoring.segments import Segments
from mlschool_dagster.monitoring.statistics import corrected_z, difference_interval
from mlschool_dagster_tests.monitoring.samples import SPEC, as_window, population, window
from mlschool_dagster_tests.monitoring.test_performance import NO_LABELS, labels

ISLANDS = ("Biscoe", "Dream", "Torgersen")


def labelled(current: pd.DataFrame, wrong: "pd.Series[bool]") -> pd.DataFrame:
    """Labels that call the predictions of `wrong` rows wrong, and all others right."""
    ground_truth = labels(current)
    classes = SPEC.target.classes
    others = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    ground_truth["label"] = ground_truth["label"].mask(
        wrong.to_numpy(), ground_truth["label"].map(others)
    )
    return ground_truth


def judged(current: pd.DataFrame, ground_truth: pd.DataFrame) -> PerformanceReport:
    return performance([current], [ground_truth], SPEC, {})


def test_every_row_is_in_one_segment_of_each_column() -> None:
    current = window(300).assign(role=["primary"] * 200 + ["canary"] * 100)
    current.loc[:39, "island"] = "elsewhere"
    current.loc[40:79, "sex"] = None
    segments = judged(current, NO_LABELS).segments
    for column in ("island", "sex", "role"):
        rows = [result.rows for name, result in segments.items() if name.startswith(f"{column}=")]
        assert sum(rows) == 300
    assert segments["island=other"].rows == 40
    assert segments["sex=missing"].rows >= 40
    assert (segments["role=primary"].rows, segments["role=canary"].rows) == (200, 100)


def test_small_segments_are_pooled_and_not_blamed_but_roles_are_kept() -> None:
    current = window(200).assign(island="Dream", role="primary")
    current.loc[:9, "island"] = "Biscoe"
    current.loc[10:19, "island"] = "Torgersen"
    current.loc[:4, "role"] = "canary"
    report = judged(current, labelled(current, current["island"] != "Dream"))
    islands = {name for name in report.segments if name.startswith("island=")}
    assert islands == {"island=Dream", "island=other"}
    assert report.segments["island=other"].measured == 0
    assert report.segments["role=canary"].rows == 5
    assert report.worst is None or report.worst.segment != "island=other"


@pytest.mark.parametrize("island", ISLANDS)
def test_the_worst_segment_is_named(island: str) -> None:
    current = window(1000, seed=3)
    rng = np.random.default_rng(1)
    wrong = (current["island"] == island) & (rng.random(1000) < 0.3)
    worst = judged(current, labelled(current, wrong)).worst
    assert worst is not None
    assert (worst.segment, worst.basis, worst.is_worse) == (f"island={island}", "labels", True)
    assert worst.low < worst.difference < worst.high < -0.2
    assert f"The worst segment is island={island}: accuracy {worst.accuracy:.2f}" in worst.summary


def test_without_labels_the_worst_is_named_by_the_estimates() -> None:
    current = window(1000, seed=3)
    unsure = current["sex"] == "FEMALE"
    current["confidence"] = current["confidence"].mask(unsure, 0.7)
    worst = judged(current, NO_LABELS).worst
    assert worst is not None
    assert (worst.segment, worst.basis, worst.is_worse) == ("sex=FEMALE", "estimate", True)


@pytest.mark.slow
def test_chance_blames_a_segment_in_at_most_one_of_twenty_windows() -> None:
    rng = np.random.default_rng(5)
    blamed = 0
    for seed in range(100):
        current = window(200, seed)
        worst = judged(current, labelled(current, pd.Series(rng.random(200) < 0.15))).worst
        blamed += worst is not None and worst.is_worse
    assert blamed <= 8


def test_segments_of_chunks_add_up_to_those_of_the_whole() -> None:
    current = window(500)
    ground_truth = labels(current.iloc[:300], wrong=20)
    pieces = [current.iloc[start : start + 37] for start in range(0, 500, 37)]
    whole, parts = (
        judged(current, ground_truth),
        performance(pieces, [ground_truth[:99], ground_truth[99:]], SPEC, {}),
    )
    assert parts.to_dict() == whole.to_dict()


@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(1, 50),
)
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(
    one: tuple[int, int], other: tuple[int, int], comparisons: int
) -> None:
    z = corrected_z(comparisons)
    low, high = difference_interval(*one, *other, z)
    turned_low, turned_high = difference_interval(*other, *one, z)
    difference = one[0] / one[1] - other[0] / other[1]
    assert -1 - 1e-9 <= low <= difference <= high <= 1 + 1e-9
    assert (turned_low, turned_high) == pytest.approx((-high, -low))


def test_newcombes_own_example_is_reproduced() -> None:
    # Newcombe (1998), table II, method 10: 56/70 less 48/80.
    low, high = difference_interval(56, 70, 48, 80, corrected_z(1))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*ISLANDS, "elsewhere", "other", "missing", None]), min_size=1))
def test_any_value_has_its_place(values: list[str | None]) -> None:
    rows = as_window(population().head(1).loc[[0] * len(values)].reset_index(drop=True))
    frame = rows.assign(island=pd.Series(values, dtype=object))
    segments = Segments(SPEC)
    places = segments.positions(frame)
    names = [segments.names[place] for place in places[1]]
    for name, value in zip(names, values, strict=True):
        known = value if value in (*ISLANDS, "missing") else "other"
        assert name == f"island={'missing' if value is None else known}"
