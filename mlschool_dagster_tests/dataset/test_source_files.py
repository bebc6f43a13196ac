"""Files as people have them: read alike by training and batches, or refused with one sentence."""

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlschool_dagster.dataset.source_files import MAX_LINE
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.dataset.tables import MAX_COLUMNS, carried_schema, read_data, table_files
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.worlds import DATA

TEXT = (DATA / "penguins.csv").read_text(encoding="utf-8")
HEADER, FIRST = TEXT.splitlines()[:2]
FEW = "\n".join(TEXT.splitlines()[:20]) + "\n"


def read_by_both(source: Path, spec: DataSpec) -> list[str]:
    """The names of the files that are read, once by training and once by a batch."""
    trained = read_data(str(source), spec).index.str.rpartition(":").get_level_values(0)
    batch = [
        chunk.file
        for file in table_files(source, spec)
        for chunk in file.chunks(1000)
        if chunk.rows
    ]
    assert list(dict.fromkeys(trained)) == batch
    return batch


def refusal_of_both(source: Path, spec: DataSpec) -> str:
    """Why training and batches refuse `source`, in one sentence."""
    messages = set()
    for read in (
        lambda: read_data(str(source), spec),
        lambda: [list(file.chunks(1000)) for file in table_files(source, spec, with_target=True)],
    ):
        with pytest.raises(UserError) as refused:
            read()
        messages.add(str(refused.value))
    (sentence,) = messages
    assert "\n" not in sentence
    return sentence


def test_a_folder_is_read_alike_by_training_and_batches(tmp_path: Path, spec: DataSpec) -> None:
    for name in (
        "b.csv",
        "B.CSV",
        "A.tsv",
        ".a.csv",
        "_b.csv",
        "._a.csv",
        "notes.txt",
        "c.csv.bak",
    ):
        (tmp_path / name).write_text(FEW)
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(FEW.encode()))
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "header.csv").write_text(HEADER)
    (tmp_path / "blank.csv").write_text("\n\n")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "old.csv").write_text(FEW)
    frame = read_data(str(DATA / "penguins.csv"), spec)
    frame.reset_index(drop=True).to_parquet(tmp_path / "d.Parquet")
    assert read_by_both(tmp_path, spec) == ["A.tsv", "B.CSV", "b.csv", "c.csv.gz", "d.Parquet"]


def test_a_file_may_have_any_name(tmp_path: Path, spec: DataSpec) -> None:
    try:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.csv"))
        path.write_text(FEW)
    except OSError:
        pytest.skip("this file system takes no such name")
    pd.read_csv(DATA / "penguins.csv").to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").rename(path.with_suffix(".parquet"))
    assert read_by_both(tmp_path, spec) == ["caf\ufffd\ufffd.csv", "caf\ufffd\ufffd.parquet"]


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("a.csv", b"", "is empty; it needs a header and rows"),
    "a workbook": ("a.csv", b"PK\x03\x04....", "looks like a ZIP archive or an Excel workbook"),
    "an old workbook": ("a.csv", b"\xd0\xcf\x11\xe0...", "looks like an old Excel workbook"),
    "Parquet": ("a.csv", b"PAR1....", "looks like Parquet; let its name end in .parquet"),
    "gzip": ("a.csv", gzip.compress(b"x"), "looks compressed with gzip; let its name end in"),
    "no gzip": ("a.csv.gz", FEW.encode(), "is no intact gzip file"),
    "cut gzip": ("a.csv.gz", gzip.compress(FEW.encode())[:-12], "is no intact gzip file"),
    "gzip within": ("a.csv.gz", gzip.compress(gzip.compress(b"x")), "looks compressed with gzip"),
    "UTF-16": ("a.csv", FEW.encode("utf-16"), "looks like UTF-16"),
    "UTF-16 without a mark": ("a.csv", FEW.encode("utf-16-le"), "looks like UTF-16"),
    "latin-1": (
        "a.csv",
        (FEW + FIRST.replace("Torgersen", "Torgersön")).encode("latin-1"),
        "is not UTF-8 (line 21); it looks like Latin-1",
    ),
    "joined files": ("a.csv", (FEW + FEW).encode(), "malformed at line 21 (it repeats the header"),
    "an open quote": ("a.csv", (FEW + '"x').encode(), "is malformed at line 21"),
    "a long line": ("a.csv", b"x" * (MAX_LINE + 1), "Line 1 of"),
    "a long cell": ("a.csv", (HEADER + '\n"' + "x\n" * 10**5 + '"').encode(), "is malformed"),
    "many columns": ("a.csv", b"x," * 200_000, "has 200000 columns, but at most"),
    "no header": ("a.csv", FIRST.encode(), "do its names stand in the first line?"),
    "no CSV": ("a.csv", b"<html><body>secret", "do its names stand in the first line?"),
    "no Parquet": ("a.parquet", b"PAR1 and no more", "is no intact Parquet file"),
    "another name": ("a.json", b"{}", "ends in none of .csv, .csv.gz, .tsv, .parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_reported_alike(
    tmp_path: Path, spec: DataSpec, case: str
) -> None:
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    sentence = refusal_of_both(tmp_path / name, spec)
    assert expected in sentence
    assert "secret" not in sentence


def test_a_decimal_comma_is_reported(tmp_path: Path, spec: DataSpec) -> None:
    (tmp_path / "a.csv").write_text(FEW.replace(",", ";").replace(".", ","))
    with pytest.raises(UserError, match=r"such as '39,1' .*; write a decimal point"):
        read_data(str(tmp_path / "a.csv"), spec)


def test_columns_are_bounded(tmp_path: Path, spec: DataSpec) -> None:
    more = [f"c{number}" for number in range(MAX_COLUMNS)]
    lines = [",".join([line, *more]) for line in (HEADER, FIRST)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert f"has {MAX_COLUMNS + 7} columns, but at most" in refusal_of_both(
        tmp_path / "a.csv", spec
    )


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_reported_and_never_waited_for(
    tmp_path: Path, spec: DataSpec, make: Callable[[Path], None]
) -> None:
    (tmp_path / "a.csv").write_text(FEW)
    make(tmp_path / "x.csv")
    message = refusal_of_both(tmp_path, spec)
    assert re.search(r"x\.csv is (a folder|no regular file), though it is called", message)


def test_a_folder_called_like_a_file_may_be_the_data(tmp_path: Path, spec: DataSpec) -> None:
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "x.csv" / "part-0.csv").write_text(FEW)
    assert read_by_both(tmp_path / "x.csv", spec) == ["part-0.csv"]


@pytest.mark.parametrize("source", ["absent.csv", "x" * 300, "a\0b.csv", "/dev/null", "."])
def test_a_place_without_data_is_reported(tmp_path: Path, spec: DataSpec, source: str) -> None:
    refusal_of_both(tmp_path / source, spec)


NUMBERS = [39.1, 39.5, 40.3]
TEXTS = ["Biscoe", " Dream ", "NA"]
PARQUET = {
    "float": (pa.array(NUMBERS), pa.array(TEXTS)),
    "float32": (pa.array([39.0, 39.5, 40.25], pa.float32()), pa.array(TEXTS, pa.large_string())),
    "integers": (pa.array([39, 40, 41], pa.uint16()), pa.array(TEXTS).dictionary_encode()),
    "decimals": (
        pa.array(NUMBERS).cast(pa.decimal128(20, 6)),
        pa.array(TEXTS).cast(pa.large_string()).dictionary_encode(),
    ),
    "views": (pa.array(NUMBERS), pa.array(TEXTS, pa.string_view())),
    "nothing": (pa.nulls(3), pa.nulls(3)),
    "a dictionary of numbers": (pa.array(NUMBERS).dictionary_encode(), pa.array(TEXTS)),
}


def parquet_file(path: Path, **columns: pa.Array) -> Path:
    table = pa.Table.from_pandas(pd.read_csv(DATA / "penguins.csv").head(3), preserve_index=False)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
    parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("case", PARQUET)
def test_parquet_of_many_types_is_read(tmp_path: Path, spec: DataSpec, case: str) -> None:
    numbers, texts = PARQUET[case]
    path = parquet_file(tmp_path / "a.parquet", culmen_length_mm=numbers, island=texts)
    frame = read_data(str(path), spec)
    expected = [None if value is None else float(value) for value in numbers.to_pylist()]
    assert [None if pd.isna(value) else value for value in frame["culmen_length_mm"]] == expected
    texts_read = [None if pd.isna(value) else value for value in frame["island"]]
    assert texts_read == ([None] * 3 if case == "nothing" else ["Biscoe", "Dream", None])
    (file,) = table_files(path, spec)
    (chunk,) = file.chunks(10)
    assert [row["culmen_length_mm"] for row in chunk.rows] == expected
    assert [row["island"] for row in chunk.rows] == texts_read


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("culmen_length_mm", pa.array(["39.1", "40", "41"]), "has the type string, but must be a"),
        ("culmen_length_mm", pa.array([True, False, None]), "has the type bool, but must be a"),
        ("culmen_length_mm", pa.array([[1.0], [2.0], []]), "but must be a number"),
        ("culmen_length_mm", pa.array([1, 2, 3], pa.timestamp("us")), "but must be a number"),
        ("island", pa.array([1, 2, 3]), "has the type int64, but must be text"),
        ("island", pa.array([b"a", b"b", b"c"]), "has the type binary, but must be text"),
        ("island", pa.array([{"a": 1}] * 3), "but must be text"),
    ],
)
def test_parquet_of_another_type_is_reported_before_anything_is_read(
    tmp_path: Path, spec: DataSpec, name: str, values: pa.Array, expected: str
) -> None:
    path = parquet_file(tmp_path / "a.parquet", **{name: values})
    assert expected in refusal_of_both(path, spec)


def test_what_is_carried_has_one_type_or_is_reported(tmp_path: Path, spec: DataSpec) -> None:
    parquet_file(tmp_path / "a.parquet", id=pa.array([1, 2, 3]))
    parquet_file(tmp_path / "b.parquet", id=pa.array(["x", "y", "z"]))
    with pytest.raises(UserError, match=r"Column id is int64 in .*a\.parquet and string in .*b\.p"):
        carried_schema(table_files(tmp_path, spec))
    parquet_file(tmp_path / "b.parquet", id=pa.array([1.5, None, 3.0]))
    assert carried_schema(table_files(tmp_path, spec)).field("id").type == pa.float64()
