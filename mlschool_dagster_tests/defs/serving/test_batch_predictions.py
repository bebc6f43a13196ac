"""Batch predictions: files through the registered version, and what came of them on the asset."""

import re
from pathlib import Path

import pandas as pd

from mlschool_dagster_tests.platform import (
    DATA,
    SPEC,
    Platform,
    materialized,
    metadata,
    sentence,
)


def test_the_champion_predicts_on_a_file_and_the_asset_shows_what_came_of_it(
    trained_platform: Platform, tmp_path: Path
) -> None:
    trained_platform.registry().promote("1")
    source = tmp_path / "rows.csv"
    source.write_text(DATA.read_text().replace("3750", "-3750", 1))
    config = {"batch_predictions": {"input": str(source), "output": str(tmp_path / "out")}}
    result = trained_platform.run("batch_job", config)
    assert result.success
    shown = metadata(result, "batch_predictions")
    assert (shown["version"], shown["dagster/row_count"]) == ("1", 343)
    assert (shown["rejected"], shown["rejected_share"]) == (1.0, 1 / 344)
    (reason,) = shown["rejected_by_reason"].records
    assert reason.data == {"reason": "body_mass_g: must be between 1000 and 10000 g", "rows": 1}
    assert sum(record.data["rows"] for record in shown["classes"].records) == 343
    assert shown["carried_along"] == SPEC.target.name
    assert shown["rows_per_second"] > 0
    assert len(shown["preview"].records) == 8
    found = pd.read_parquet(shown["predictions"])
    assert (found["prediction"] == found[SPEC.target.name]).mean() > 0.9
    assert pd.read_parquet(shown["rejections"])["row_number"].tolist() == [1]


def test_without_configuration_the_platform_s_data_is_predicted_on(
    trained_platform: Platform,
) -> None:
    trained_platform.registry().promote("1")
    result = trained_platform.run("batch_job")
    assert result.success
    path = Path(metadata(result, "batch_predictions")["predictions"])
    assert path.is_relative_to(trained_platform.files)


def test_a_file_that_is_not_there_is_reported_in_one_sentence(
    trained_platform: Platform, tmp_path: Path
) -> None:
    trained_platform.registry().promote("1")
    config = {"batch_predictions": {"input": str(tmp_path / "nowhere.csv")}}
    result = trained_platform.run("batch_job", config)
    assert re.search(r"There is no data at .*nowhere\.csv; give", sentence(result))
    assert materialized(result) == set()


def test_without_a_champion_the_versions_that_exist_are_named(trained_platform: Platform) -> None:
    result = trained_platform.run("batch_job")
    assert "has no version 'champion'; choose among 1, challenger" in sentence(result)
