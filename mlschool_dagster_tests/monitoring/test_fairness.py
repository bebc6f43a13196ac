"""Error shares are compared across protected groups, and called unequal only beyond chance."""

from dataclasses import replace

import numpy as np
import pytest

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.fairness import FairnessReport, FairnessVerdict
from mlschool_dagster.monitoring.performance import performance
from mlschool_dagster_tests.monitoring.samples import SPEC, window
from mlschool_dagster_tests.monitoring.test_performance import NO_LABELS, labels


def judged(rows: int, errors: dict[str, float], spec: DataSpec = SPEC) -> FairnessReport:
    """The report on `sex` where predictions are wrong with a chance that depends on it."""
    current = window(rows, seed=2)
    current["sex"] = np.random.default_rng(0).choice(["FEMALE", "MALE"], rows)
    chances = current["sex"].map(errors).to_numpy(dtype=float)
    wrong = np.random.default_rng(1).random(rows) < chances
    told = labels(current)
    told.loc[wrong, "label"] = labels(current, wrong=rows).loc[wrong, "label"]
    (found,) = performance([current], [told], spec, {}).fairness
    return found


def test_unequal_errors_are_found_and_told_by_group() -> None:
    found = judged(1000, {"FEMALE": 0.25, "MALE": 0.05})
    assert found.verdict is FairnessVerdict.UNEQUAL
    assert found.disparity is not None
    assert (found.disparity.worse, found.disparity.better) == ("sex=FEMALE", "sex=MALE")
    assert found.disparity.low > found.disparity.tolerated
    assert "more than the tolerated 5%" in found.summary
    shares = {row["group"]: row["error_share"] for row in found.rows()}
    assert shares["sex=FEMALE"] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("rows", [200, 20_000])
def test_equal_errors_are_not(rows: int) -> None:
    assert judged(rows, {"FEMALE": 0.1, "MALE": 0.1}).verdict is FairnessVerdict.TOLERABLE


def test_a_sure_but_small_difference_is_tolerated() -> None:
    found = judged(50_000, {"FEMALE": 0.12, "MALE": 0.10})
    assert found.disparity is not None
    assert found.disparity.low > 0
    assert found.verdict is FairnessVerdict.TOLERABLE


@pytest.mark.slow
def test_chance_accuses_nobody_more_often_than_stated() -> None:
    strict = 0.0
    accused = 0
    for seed in range(200):
        current = window(200, seed)
        wrong = np.random.default_rng(seed).random(200) < 0.15
        told = labels(current)
        told.loc[wrong, "label"] = labels(current, wrong=200).loc[wrong, "label"]
        report = performance([current], [told], SPEC, {}, tolerated_difference=strict)
        accused += report.fairness[0].verdict is FairnessVerdict.UNEQUAL
    assert accused <= 18


def test_without_labels_nothing_is_said() -> None:
    (found,) = performance([window(200)], [NO_LABELS], SPEC, {}).fairness
    assert found.verdict is FairnessVerdict.NOT_ENOUGH_DATA
    assert "Not enough labels to compare errors by sex" in found.summary


def test_without_protected_columns_there_is_nothing_to_judge() -> None:
    assert performance([window(200)], [NO_LABELS], replace(SPEC, protected=()), {}).fairness == ()


@pytest.mark.parametrize("protected", [["body_mass_g"], ["species"], ["age"]])
def test_only_categorical_columns_can_be_protected(protected: list[str]) -> None:
    document = {**SPEC.to_dict(), "protected": protected}
    with pytest.raises(UserError, match="choose among: island, sex"):
        DataSpec.from_dict(document)
    assert DataSpec.from_dict(SPEC.to_dict()) == SPEC
