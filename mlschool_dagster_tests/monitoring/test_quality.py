"""Faults of a window are named with their column; a sound window has none."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metric_records import quality_metrics
from mlschool_dagster.monitoring.quality import quality
from mlschool_dagster_tests.monitoring.samples import SPEC, START, population, window

REFERENCE = population()
HOUR = Window(START)


def test_a_sound_window_has_no_findings() -> None:
    report = quality([window(200)], REFERENCE, SPEC)
    assert report.findings == ()
    assert report.model_versions == {"3": 200}
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"island": None}, "island is missing in 200 of 200 rows, where none may be"),
        ({"sex": None}, "sex is missing in 200 of 200 rows (100.0%)"),
        ({"body_mass_g": -5.0}, "body_mass_g lies outside 1000 to 10000 g in 200 of 200 rows"),
        ({"body_mass_g": np.inf}, "body_mass_g lies outside"),
        ({"sex": "?"}, "sex has values outside its categories in 200 of 200 rows: '?'"),
        ({"culmen_depth_mm": 17.0}, "culmen_depth_mm has one and the same value"),
        ({"event_id": "same"}, "199 rows repeat an event id"),
    ],
)
def test_each_fault_is_a_sentence(change: dict[str, Any], words: str) -> None:
    report = quality([window(200).assign(**change)], REFERENCE, SPEC)
    assert any(words in finding for finding in report.findings)


def test_an_empty_window_is_no_fault() -> None:
    report = quality([window(0)], REFERENCE, SPEC)
    assert report.findings == ()
    assert "has no captures" in report.summary
    json.dumps(report.to_dict(), allow_nan=False)
    assert list(quality_metrics(HOUR, report, SPEC)) == []


def test_a_column_that_nearly_always_has_one_value_may_have_it_in_all_rows() -> None:
    rare = REFERENCE.assign(body_mass_g=[0.0] * 340 + [3.0] * 4)
    quiet = quality([window(200).assign(body_mass_g=0.0)], rare, SPEC)
    assert not [finding for finding in quiet.findings if "one and the same value" in finding]
    stuck = quality([window(200).assign(body_mass_g=3.0)], rare, SPEC)
    assert any("body_mass_g has one and the same value" in result for result in stuck.findings)


def test_distinct_values_are_exact_or_said_not_to_be() -> None:
    many = window(5_000).assign(body_mass_g=np.arange(5_000) + 2_000.0)
    distinct = {row["column"]: row["distinct"] for row in quality([many], REFERENCE, SPEC).rows()}
    assert distinct["body_mass_g"] == "1,000 or more"
    assert distinct["island"] == 3


def test_one_missing_value_in_a_small_window_is_chance() -> None:
    current = window(10).assign(sex=pd.Series([None, *["MALE", "FEMALE"] * 4, "MALE"]))
    assert quality([current], REFERENCE, SPEC).findings == ()


def test_repeated_rows_are_counted_but_no_fault() -> None:
    twice = pd.concat([window(50)] * 2).assign(event_id=[str(i) for i in range(100)])
    report = quality([twice], REFERENCE, SPEC)
    assert report.duplicate_rows >= 50
    assert report.findings == ()


REFUSALS = {"body_mass_g: is not in range": 30, "malformed": 10}


def test_refusals_beyond_chance_are_a_finding_that_names_the_commonest_reason() -> None:
    report = quality([window(200)], REFERENCE, SPEC, REFUSALS)
    assert report.findings == (
        "40 refusals beside 200 answered rows (16.7%) are more than 5%; the most frequent reason "
        "is 'body_mass_g: is not in range' (30).",
    )
    assert (report.refused, report.refused_share) == (40, 40 / 240)
    assert report.to_dict()["refusals"] == REFUSALS


@pytest.mark.parametrize(("rows", "refused"), [(10, 1), (200, 15), (2000, 110)])
def test_refusals_that_may_be_chance_are_none(rows: int, refused: int) -> None:
    assert quality([window(rows)], REFERENCE, SPEC, {"malformed": refused}).findings == ()


def test_a_sampled_capture_stands_for_the_rows_that_were_not_captured() -> None:
    sampled = window(200).assign(sampling_share=0.1)
    report = quality([sampled], REFERENCE, SPEC, REFUSALS)
    assert report.refused_share == 40 / 2040
    assert report.findings == ()


def test_a_window_of_refusals_only_says_so() -> None:
    report = quality([window(0)], REFERENCE, SPEC, {"malformed": 90})
    assert report.refused_share == 1
    assert "90 refusals beside 0 answered rows (100.0%)" in report.findings[-1]
