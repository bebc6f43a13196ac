"""Challenger against champion: called better when it is, and seldom when it is not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlschool_dagster.dataset.spec import PREDICTION, DataSpec
from mlschool_dagster.modeling.comparison import (
    ComparisonConfig,
    ComparisonVerdict,
    Mask,
    compare,
    compare_on_base,
    paired,
    parts_of,
)
from mlschool_dagster.modeling.evaluation import reference_frame
from mlschool_dagster.modeling.training import TrainingResult

CONFIG = ComparisonConfig()
WHOLE: dict[str, Mask] = {}


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[Mask, Mask]:
    champion = np.repeat([True, False, True, False], [both, gained, lost, neither])
    challenger = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return champion, challenger


@given(*[st.integers(0, 60)] * 4)
def test_a_pair_is_counted_and_tested_as_it_is(both: int, gained: int, lost: int, no: int) -> None:
    champion, challenger = outcomes(both, gained, lost, no + 1)
    result = paired(champion, challenger)
    assert (result.gained, result.lost, result.rows) == (
        gained,
        lost,
        both + gained + lost + no + 1,
    )
    assert result.difference == pytest.approx(challenger.mean() - champion.mean())
    assert result.lower <= result.difference <= result.upper
    if gained + lost:
        assert result.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_a_challenger_that_gains_is_better() -> None:
    result = compare(*outcomes(100, 30, 5, 10), WHOLE, None, CONFIG)
    assert result.verdict is ComparisonVerdict.BETTER
    assert "accuracy 0.897 against 0.724 on 145 labelled captures" in result.summary


def test_few_rows_are_not_enough_however_clear_they_are() -> None:
    for rows in (0, 49):
        result = compare(*outcomes(0, rows, 0, 0), WHOLE, None, CONFIG)
        assert result.verdict is ComparisonVerdict.NOT_ENOUGH_DATA
        assert f"{rows} labelled captures were put aside, 50 are needed" in result.summary


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((100, 8, 5, 10), "is not better than the champion beyond chance"),
        ((100, 5, 30, 10), "is not better than the champion beyond chance"),
        ((3000, 20, 0, 10), "gains less than 0.01"),
        ((60, 30, 0, 100), "an accuracy below 0.7"),
    ],
)
def test_what_is_not_enough_is_reported(rows: tuple[int, int, int, int], expected: str) -> None:
    result = compare(*outcomes(*rows), WHOLE, None, CONFIG)
    assert result.verdict is ComparisonVerdict.NOT_BETTER
    assert expected in result.summary


def test_a_gain_at_the_cost_of_some_is_no_gain() -> None:
    champion, challenger = outcomes(100, 60, 20, 5)
    victims = ~challenger & champion
    parts = {"sex=FEMALE": victims, "sex=MALE": ~victims}
    result = compare(champion, challenger, parts, None, CONFIG)
    assert result.verdict is ComparisonVerdict.NOT_BETTER
    assert result.worse_for == ("sex=FEMALE",)
    assert result.worst_part == "sex=FEMALE"


def test_what_was_known_must_not_be_forgotten_unless_it_is_no_longer_true() -> None:
    better = outcomes(100, 30, 5, 10)
    forgotten = paired(*outcomes(200, 0, 60, 10))
    assert "may lose more than 0.1 on the base data" in (
        compare(*better, WHOLE, forgotten, CONFIG).summary
    )
    assert (
        compare(*better, WHOLE, forgotten, CONFIG, new_truth=True).verdict
        is ComparisonVerdict.BETTER
    )


def test_an_equal_challenger_is_seldom_called_better() -> None:
    rng = np.random.default_rng(1)
    wins = 0
    for _ in range(400):
        champion, challenger = rng.random((2, 150)) < 0.85
        wins += (
            compare(champion, challenger, WHOLE, None, CONFIG).verdict is ComparisonVerdict.BETTER
        )
    assert wins / 400 < 0.05


def test_the_base_data_is_compared_out_of_fold_on_common_rows(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    champion = reference_frame(trained, penguins, spec)
    challenger = champion.copy()
    challenger[PREDICTION] = spec.target.classes[0]
    relabelled = challenger.iloc[::2].copy()
    relabelled[spec.target.name] = spec.target.classes[1]
    result = compare_on_base(champion, pd.concat([challenger[1::2], relabelled]), penguins, spec)
    assert result is not None
    already = int((champion[spec.target.name][::2] == spec.target.classes[1]).sum())
    assert len(penguins) // 2 <= result.rows <= len(penguins) // 2 + already
    assert result.difference < -0.3
    nothing = compare_on_base(champion, relabelled[:0], penguins, spec)
    assert nothing is None


def test_rows_with_equal_inputs_and_different_truths_all_count(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    base = pd.concat([penguins[:2]] * 30, ignore_index=True)
    base[spec.target.name] = [spec.target.classes[at % 3] for at in range(len(base))]
    reference = base.assign(**{PREDICTION: spec.target.classes[0]})
    result = compare_on_base(reference, pd.concat([reference, reference[:9]]), base, spec)
    assert result is not None
    assert (result.rows, result.difference) == (len(base), 0.0)


def test_parts_cover_all_rows_and_small_ones_are_pooled(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    parts = parts_of(penguins, spec)
    for column in (spec.target.name, *(c.name for c in spec.categorical)):
        own = [mask for name, mask in parts.items() if name.startswith(f"{column}=")]
        assert (np.sum(own, axis=0) == 1).all()
    assert penguins["sex"].isna().sum() < 20
    assert parts["sex=other"].sum() == penguins["sex"].isna().sum()
