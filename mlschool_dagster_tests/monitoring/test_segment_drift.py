"""A segment that changed is named, though the others did not; without drift none is."""

import pytest

from mlschool_dagster.monitoring.drift import DriftVerdict
from mlschool_dagster.monitoring.segment_drift import drift_by_segment
from mlschool_dagster_tests.monitoring.samples import SPEC, population, shifted, window

REFERENCE = population()


def test_the_segment_that_changed_is_named_with_its_column() -> None:
    current = window(600)
    there = current["island"] == "Dream"
    changed = shifted(current, "body_mass_g")
    current["body_mass_g"] = current["body_mass_g"].mask(there, changed["body_mass_g"])
    found = {one.segment: one for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert found["island=Dream"].verdict == DriftVerdict.DRIFTED
    assert "body_mass_g" in found["island=Dream"].columns
    assert found["island=Biscoe"].verdict != DriftVerdict.DRIFTED


def test_small_segments_are_left_out() -> None:
    current = window(200).assign(island="Dream")
    current.loc[:9, "island"] = "Biscoe"
    found = {one.segment: one.rows for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert found["island=Dream"] == 190
    assert not {"island=Biscoe", "island=Torgersen", "role=primary"} & found.keys()


def test_roles_are_compared_with_the_whole_reference() -> None:
    current = window(200).assign(role=["primary"] * 120 + ["canary"] * 80)
    found = {one.segment: one for one in drift_by_segment(current, REFERENCE, SPEC)}
    assert (found["role=canary"].rows, found["role=canary"].reference_rows) == (80, 344)


@pytest.mark.slow
def test_without_drift_hardly_any_window_has_a_segment_flagged() -> None:
    flagged = sum(
        any(
            one.verdict == DriftVerdict.DRIFTED
            for one in drift_by_segment(window(200, seed), REFERENCE, SPEC)
        )
        for seed in range(20)
    )
    assert flagged <= 4
