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
    ground_truth = labels(current)
    ground_truth.loc[wrong, "label"] = labels(current, wrong=rows).loc[wrong, "label"]
    (result,) = performance([current], [ground_truth], spec, {}).fairness
    return result


def test_unequal_errors_are_detected_by_group() -> None:
    result = judged(1000, {"FEMALE": 0.25, "MALE": 0.05})
    assert result.verdict is FairnessVerdict.UNEQUAL
    assert result.disparity is not None
    assert (result.disparity.worse, result.disparity.better) == ("sex=FEMALE", "sex=MALE")
    assert result.disparity.low > result.disparity.tolerated
    assert "more than the tolerated 5%" in result.summary
    shares = {row["group"]: row["error_share"] for row in result.rows()}
    assert shares["sex=FEMALE"] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("rows", [200, 20_000])
def test_equal_errors_are_not(rows: int) -> None:
    assert judged(rows, {"FEMALE": 0.1, "MALE": 0.1}).verdict is FairnessVerdict.TOLERABLE


def test_a_sure_but_small_difference_is_tolerated() -> None:
    result = judged(50_000, {"FEMALE": 0.12, "MALE": 0.10})
    assert result.disparity is not None
    assert result.disparity.low > 0
    assert result.verdict is FairnessVerdict.TOLERABLE


@pytest.mark.slow
def test_chance_accuses_nobody_more_often_than_stated() -> None:
    strict = 0.0
    accused = 0
    for seed in range(200):
        current = window(200, seed)
        wrong = np.random.default_rng(seed).random(200) < 0.15
        ground_truth = labels(current)
        ground_truth.loc[wrong, "label"] = labels(current, wrong=200).loc[wrong, "label"]
        report = performance([current], [ground_truth], SPEC, {}, tolerated_difference=strict)
        accused += report.fairness[0].verdict is FairnessVerdict.UNEQUAL
    assert accused <= 18


def test_without_labels_nothing_is_said() -> None:
    (result,) = performance([window(200)], [NO_LABELS], SPEC, {}).fairness
    assert result.verdict is FairnessVerdict.NOT_ENOUGH_DATA
    assert "Not enough labels to compare errors by sex" in result.summary


def test_without_protected_columns_there_is_nothing_to_judge() -> None:
    assert performance([window(200)], [NO_LABELS], replace(SPEC, protected=()), {}).fairness == ()


@pytest.mark.parametrize("protected", [["body_mass_g"], ["species"], ["age"]])
def test_only_categorical_columns_can_be_protected(protected: list[str]) -> None:
    document = {**SPEC.to_dict(), "protected": protected}
    with pytest.raises(UserError, match="choose among: island, sex"):
        DataSpec.from_dict(document)
    assert DataSpec.from_dict(SPEC.to_dict()) == SPEC
