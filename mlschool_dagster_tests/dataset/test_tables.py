from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.dataset.tables import content_digest, read_data
from mlschool_dagster.errors import UserError

HEADER = "island,culmen_length_mm,culmen_depth_mm,flipper_length_mm,body_mass_g,sex,species"
ROW = "Dream,40.1,18.0,190,3500,MALE,Adelie"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def write(file: Path, *lines: str) -> str:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def test_the_penguins_are_the_published_table(penguins: pd.DataFrame) -> None:
    assert len(penguins) == 344
    assert penguins["species"].value_counts().to_dict() == {
        "Adelie": 152,
        "Gentoo": 124,
        "Chinstrap": 68,
    }
    assert penguins["island"].value_counts().to_dict() == {
        "Biscoe": 168,
        "Dream": 124,
        "Torgersen": 52,
    }
    missing = penguins.isna().sum()
    assert missing[missing > 0].to_dict() == {
        "culmen_length_mm": 2,
        "culmen_depth_mm": 2,
        "flipper_length_mm": 2,
        "body_mass_g": 2,
        "sex": 11,
    }


@pytest.mark.parametrize("missing", ["", ".", "NA", " . ", "NaN"])
def test_missing_values_are_read_as_missing(missing: str, file: Path, spec: DataSpec) -> None:
    frame = read_data(write(file, HEADER, f"Dream,40,18,{missing},3500,{missing},Adelie"), spec)
    assert frame["flipper_length_mm"].isna().all()
    assert frame["sex"].isna().all()
    assert frame["body_mass_g"].tolist() == [3500.0]


def test_a_folder_reads_as_its_files_in_order(tmp_path: Path, spec: DataSpec) -> None:
    whole = read_data(write(tmp_path / "whole.csv", HEADER, ROW, ROW.replace("40", "50")), spec)
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "b.csv", HEADER, ROW.replace("40", "50"))
    write(folder / "a.csv", "note," + HEADER, '"x, y",' + ROW)
    parts = read_data(folder.as_uri(), spec)
    assert parts.index.tolist() == ["a.csv:2", "b.csv:2"]
    assert content_digest(parts) == content_digest(whole)


def test_rows_are_named_by_their_line(file: Path, spec: DataSpec) -> None:
    quoted = ROW.replace("Dream", '"Dream\n"')
    frame = read_data(write(file, HEADER, ROW, "", quoted, ROW), spec)
    assert frame.index.tolist() == ["data.csv:2", "data.csv:4", "data.csv:6"]
    assert frame["island"].tolist() == ["Dream"] * 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (HEADER.encode(), "no rows"),
        (f"{HEADER}\n{ROW}\nBjörk".encode("latin-1"), r"not UTF-8 \(line 3\)"),
        (b"island,species\nDream,Adelie", "lacks the columns culmen_length_mm, culmen_depth_mm"),
        (f"sex,{HEADER}\n,{ROW}".encode(), "has the column sex twice"),
        (f"{HEADER}\n{ROW}\n{ROW},1".encode(), "Row data.csv:3 has 8 cells"),
        (f'{HEADER}\n{ROW}\n"Dream'.encode(), "malformed at line 3"),
        (
            f"{HEADER}\n{ROW}\n{ROW.replace('3500', 'heavy')}".encode(),
            "Column body_mass_g must be numeric but has text such as 'heavy' in row data.csv:3",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    content: bytes, sentence: str, file: Path, spec: DataSpec
) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        read_data(str(file), spec)
    assert "\n" not in str(raised.value)


def test_where_there_is_no_data_the_place_is_named(tmp_path: Path, spec: DataSpec) -> None:
    with pytest.raises(UserError, match=r"There is no data at .*absent"):
        read_data(str(tmp_path / "absent.csv"), spec)
    with pytest.raises(UserError, match=r"holds no \.csv or \.parquet file"):
        read_data(str(tmp_path), spec)
    with pytest.raises(UserError, match="ftp://"):
        read_data("ftp://host/data.csv", spec)


def test_a_byte_order_mark_is_no_part_of_the_header(file: Path, spec: DataSpec) -> None:
    file.write_text(f"{HEADER}\n{ROW}\n", encoding="utf-8-sig")
    assert len(read_data(str(file), spec)) == 1


CELLS = st.one_of(st.none(), st.floats(allow_nan=False, width=32))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(CELLS, min_size=1, max_size=20), other=CELLS, at=st.integers(0, 19))
def test_the_digest_depends_on_content_and_nothing_else(
    values: list[float | None], other: float | None, at: int
) -> None:
    names = [None if value is None else str(value) for value in values]
    frame = pd.DataFrame({"x": np.array(values, dtype=float), "name": names})
    same = frame[["name", "x"]].set_axis([f"f.csv:{i}" for i in range(len(values))])
    assert content_digest(frame) == content_digest(same)
    changed = frame.copy()
    changed.loc[at % len(values), "x"] = np.nan if other is None else other
    equal = changed["x"].equals(frame["x"])
    assert (content_digest(changed) == content_digest(frame)) == equal
