"""One reader of cells: the same row is the same to training, to a batch and to the endpoint."""

import csv
import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlschool_dagster.dataset.cells import MISSING, RULES
from mlschool_dagster.dataset.spec import CategoricalColumn, DataSpec, NumericColumn
from mlschool_dagster.dataset.tables import read_data, table_files
from mlschool_dagster.serving.parsing import table_of_csv
from mlschool_dagster.serving.validation import Validator
from mlschool_dagster_tests.serving.tiny_model import DATA, SPEC

# A category that is written like a missing value, and texts that are open.
WORLD = replace(
    SPEC,
    columns=(
        NumericColumn("x", "a number", -1e9, 1e9, nullable=True),
        CategoricalColumn("c", "closed", ("a", "NA", "Åsa, b"), nullable=True),
        CategoricalColumn("o", "open", ("a", "b"), nullable=True, allow_unknown=True),
    ),
    target=replace(SPEC.target, classes=("None", "Gentoo")),
    protected=(),
)
NAMES = [*WORLD.input_names, WORLD.target.name]

BLANKS = st.sampled_from(["", " ", "\t", "\u00a0", " \ufeff", "\u2003"])
TEXTS = (
    st.sampled_from([*sorted(MISSING), "a", "Åsa, b", "inf", "1_0", "1,5", "1e3", "0x1", "\u0665"])
    | st.floats().map(repr)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: f"{x:.17e}")
    | st.integers().map(str)
    | st.from_regex(r"-?[0-9]{1,18}\.[0-9]{1,30}", fullmatch=True)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
)
CELLS = st.tuples(BLANKS, TEXTS, BLANKS).map("".join)
TABLES = st.lists(st.lists(CELLS, min_size=4, max_size=4), min_size=1, max_size=5)


def as_text(rows: list[list[str]], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([NAMES, *rows])
    return text.getvalue()


def plain(value: Any) -> Any:
    """`value` with its exact bits, and None for whatever says that there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.hex() if isinstance(value, float) else value


def in_training(path: Path) -> list[list[Any]] | None:
    """The inputs as training reads them, None where it refuses text in a numeric column."""
    try:
        return read_data(str(path), WORLD)[WORLD.input_names].to_numpy(dtype=object).tolist()
    except Exception as refused:
        assert "must be numeric" in str(refused) or "no rows" in str(refused)
        return None


def in_batch(path: Path) -> list[list[Any]]:
    (file,) = table_files(path, WORLD)
    return [[row[n] for n in WORLD.input_names] for chunk in file.chunks(3) for row in chunk.rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES, delimiter=st.sampled_from(",;\t|"))
@example(rows=[["0.000000000000000000123", "NA", "NA", "None"]], delimiter=",")
@example(rows=[["39.100000000000001", "a", "", "Gentoo"], ["", "", " ", "NA"]], delimiter=";")
@example(rows=[["0.1000000000000000055511151231257827", " NA ", "null", ""]], delimiter="\t")
def test_a_row_is_read_alike_everywhere(
    tmp_path: Path, rows: list[list[str]], delimiter: str
) -> None:
    text = as_text(rows, delimiter)
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8", newline="")
    endpoint = [
        [plain(row[name]) for name in WORLD.input_names]
        for row in table_of_csv(text.encode(), WORLD).rows
    ]
    assert [[plain(value) for value in row] for row in in_batch(path)] == endpoint
    trained = in_training(path)
    if trained is not None:
        assert [[plain(value) for value in row] for row in trained] == endpoint
    some = [row for row in rows if "".join(row).replace("\ufeff", "").strip()]
    for row, read in zip(some, endpoint, strict=True):
        number, closed, _ = (cell.replace("\ufeff", "").strip() for cell in row[:3])
        if number.isascii() and "_" not in number and number not in MISSING:
            try:
                assert read[0] == plain(float(number))
            except ValueError:
                assert read[0] == number
        assert read[1] == (closed if closed == "NA" or closed not in MISSING else None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES)
def test_text_in_parquet_is_read_as_a_cell_is(tmp_path: Path, rows: list[list[str]]) -> None:
    frame = pd.DataFrame(rows, columns=NAMES, dtype=object).map(lambda t: t.replace("\ufeff", ""))
    frame["x"] = np.arange(len(frame), dtype=float)
    frame.to_parquet(tmp_path / "data.parquet")
    frame.to_csv(tmp_path / "data.csv", index=False, quoting=csv.QUOTE_ALL)
    assert in_batch(tmp_path / "data.parquet") == in_batch(tmp_path / "data.csv")
    assert in_training(tmp_path / "data.parquet") == in_training(tmp_path / "data.csv") or any(
        pd.isna(value) for row in in_batch(tmp_path / "data.csv") for value in row
    )


def test_the_projects_own_data_is_answered_as_it_is() -> None:
    body = (DATA / "penguins.csv").read_bytes()
    accepted = Validator(SPEC).accept(body, "text/csv")
    trained = read_data(str(DATA / "penguins.csv"), SPEC)[SPEC.input_names]
    assert accepted.rows == records(trained)


def records(inputs: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in inputs.to_dict("records")
    ]


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text.replace(",", ", "),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\n,,,,,,\n"),
        lambda text: f"\n\n{text}\n \n",
        lambda text: text.replace("\n", "\n\ufeff"),
        lambda text: text.replace("NA", ""),
        lambda text: text.replace("NA", "null"),
        lambda text: "".join(f"{n},{line}\n" for n, line in enumerate(text.splitlines())).replace(
            "0,", ",", 1
        ),
    ],
)
def test_a_table_may_be_written_in_many_ways(tmp_path: Path, changed: Any) -> None:
    text = changed((DATA / "penguins.csv").read_text(encoding="utf-8"))
    path = tmp_path / "Data.CSV"
    path.write_text(text, encoding="utf-8", newline="")
    packed = tmp_path / "data.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    expected = read_data(str(DATA / "penguins.csv"), SPEC).reset_index(drop=True)
    for each in (path, packed):
        pd.testing.assert_frame_equal(read_data(str(each), SPEC).reset_index(drop=True), expected)
    rows = records(expected[SPEC.input_names])
    assert Validator(SPEC).accept(text.encode(), "text/csv").rows == rows
    assert [dict(zip(SPEC.input_names, row, strict=True)) for row in read_batch(path)] == rows


def read_batch(path: Path) -> list[list[Any]]:
    (file,) = table_files(path, SPEC)
    return [[row[n] for n in SPEC.input_names] for chunk in file.chunks(99) for row in chunk.rows]


def test_in_one_column_a_missing_value_is_a_row_and_an_empty_line_is_none(tmp_path: Path) -> None:
    narrow: DataSpec = replace(WORLD, columns=WORLD.columns[:1])
    text = 'x\n1\n\n""\nNA\n'
    (tmp_path / "in.csv").write_text(text)
    expected = [{"x": 1.0}, {"x": None}, {"x": None}]
    assert table_of_csv(text.encode(), narrow).rows == expected
    (file,) = table_files(tmp_path / "in.csv", narrow)
    assert [row for chunk in file.chunks(9) for row in chunk.rows] == expected


def test_the_rules_are_written_down_as_they_are() -> None:
    page = (DATA.parent / "docs" / "data.md").read_text(encoding="utf-8")
    for what, rule in RULES.items():
        assert f"| {what} | {rule} |" in page.replace("\\|", "|")
