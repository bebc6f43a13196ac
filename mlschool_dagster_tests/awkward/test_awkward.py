"""The net for awkward data: whatever the data, the whole path works or ends in one sentence."""

import os
from pathlib import Path

import pytest

from mlschool_dagster_tests.awkward.data_sets import (
    ALL_KINDS,
    NAMED,
    SINGLE,
    TWO_ROWS_A_CLASS,
    AwkwardData,
    draw,
)
from mlschool_dagster_tests.awkward.path import walk

SEEDS = int(os.environ.get("AWKWARD_SEEDS", "8"))
"""How many data sets are drawn. Each takes 20 CPU seconds; a long run asks for hundreds."""

LAST = "retraining"


def test_all_kinds_of_columns_go_the_whole_way(tmp_path: Path, fresh_mlflow_database: Path) -> None:
    journey = walk(ALL_KINDS, tmp_path, fresh_mlflow_database)
    assert journey.steps[-1] == LAST, journey.refusal


@pytest.mark.slow
def test_two_rows_a_class_go_as_far_as_their_labels_allow(
    tmp_path: Path, fresh_mlflow_database: Path
) -> None:
    journey = walk(TWO_ROWS_A_CLASS, tmp_path, fresh_mlflow_database)
    assert journey.steps[-1] == LAST or "too few to cross-validate" in journey.refusal


@pytest.mark.slow
@pytest.mark.parametrize("data", [*NAMED, *SINGLE], ids=lambda data: data.name)
def test_a_named_data_set_goes_the_whole_way(
    data: AwkwardData, tmp_path: Path, fresh_mlflow_database: Path
) -> None:
    journey = walk(data, tmp_path, fresh_mlflow_database)
    assert journey.steps[-1] == LAST, journey.refusal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_drawn_data_set_goes_the_whole_way_or_is_refused_in_one_sentence(
    seed: int, tmp_path: Path, fresh_mlflow_database: Path
) -> None:
    journey = walk(draw(seed), tmp_path, fresh_mlflow_database)
    assert journey.refusal or journey.steps[-1] == LAST
