"""A window is flattened by the spec, whatever its rows lack."""

from pathlib import Path

import pandas as pd

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.sqlite import SqliteStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.frames import current_frame
from mlschool_dagster_tests.monitoring.samples import SPEC, START

WINDOW = Window.of(START)


def read(tmp_path: Path, *inputs: dict[str, float | str | None]) -> pd.DataFrame:
    store = SqliteStore(tmp_path / "captures.db")
    probabilities = {"Adelie": 0.1, "Chinstrap": 0.2, "Gentoo": 0.7}
    store.append(
        [
            Capture(f"e{i}", START, "penguins", "3", row, "Gentoo", 0.7, probabilities)
            for i, row in enumerate(inputs)
        ]
    )
    return current_frame(store.read(WINDOW), SPEC)


def test_numbers_are_floats_and_categories_text_or_none(tmp_path: Path) -> None:
    frame = read(
        tmp_path,
        {"island": "Dream", "body_mass_g": 4000, "sex": None},
        {"island": "Biscoe", "body_mass_g": None, "sex": "MALE"},
    )
    assert frame["body_mass_g"].dtype == "float64"
    assert frame["body_mass_g"].isna().tolist() == [False, True]
    assert frame["sex"].tolist() == [None, "MALE"]
    assert frame["culmen_depth_mm"].isna().all()
    assert frame["probability_Chinstrap"].tolist() == [0.2, 0.2]
    assert frame["event_id"].tolist() == ["e0", "e1"]


def test_an_empty_window_has_the_same_columns(tmp_path: Path) -> None:
    empty = read(tmp_path)
    full = read(tmp_path, {"island": "Dream"})
    assert empty.empty
    assert list(empty.columns) == list(full.columns)
    assert empty["body_mass_g"].dtype == "float64"
