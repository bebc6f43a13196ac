"""Batch prediction: the answers of the endpoint for whole files, and nothing half done."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from mlschool_dagster.dataset.spec import InputValue, NumericColumn, probability_column
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.batch import CHUNK_ROWS, BatchSummary, score
from mlschool_dagster.storage import LocalLocation
from mlschool_dagster_tests.serving.tiny_model import DATA, ROW, SPEC, tiny_model

MODEL = tiny_model()
PENGUINS = DATA / "penguins.csv"
Rows = Sequence[Mapping[str, InputValue]]


def batch(source: Path, output: Path, **options: Any) -> tuple[BatchSummary, pd.DataFrame]:
    summary = score(str(source), LocalLocation(output), MODEL, "7", **options)
    return summary, pd.read_parquet(summary.predictions)


def csv_file(path: Path, rows: Rows) -> Path:
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return path


def parquet_file(path: Path, rows: Rows) -> Path:
    pd.DataFrame(list(rows)).to_parquet(path)
    return path


def test_a_training_file_is_predicted_on_as_it_is(tmp_path: Path) -> None:
    summary, result = batch(PENGUINS, tmp_path / "out")
    assert (summary.rows, summary.rejected, summary.carried) == (344, 0, [SPEC.target.name])
    truth = pd.read_csv(PENGUINS, keep_default_na=False)
    assert result[SPEC.target.name].tolist() == truth[SPEC.target.name].tolist()
    assert result["row_number"].tolist() == list(range(1, 345))
    assert set(result["source_file"]) == {"penguins.csv"}
    assert set(result["model_version"]) == {"7"}
    assert summary.classes == {
        label: int((result["prediction"] == label).sum()) for label in SPEC.target.classes
    }


def value_of(column: Any) -> st.SearchStrategy[InputValue]:
    values: st.SearchStrategy[InputValue] = (
        st.floats(column.minimum, column.maximum)
        if isinstance(column, NumericColumn)
        else st.sampled_from(column.categories)
    )
    return st.none() | values if column.nullable else values


rows_strategy = st.lists(
    st.fixed_dictionaries({column.name: value_of(column) for column in SPEC.columns}),
    min_size=1,
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_strategy, st.integers(1, 5), st.sampled_from([csv_file, parquet_file]))
def test_each_row_gets_the_answer_of_the_model_whatever_the_chunks(
    tmp_path: Path, rows: Rows, chunk_rows: int, write: Any
) -> None:
    suffix = ".csv" if write is csv_file else ".parquet"
    summary, result = batch(
        write(tmp_path / f"in{suffix}", rows), tmp_path / "out", chunk_rows=chunk_rows
    )
    assert summary.rejected == 0
    expected = MODEL.probabilities(list(rows))
    names = [probability_column(label) for label in SPEC.target.classes]
    assert np.allclose(result[names].to_numpy(), expected, atol=1e-9)
    assert np.allclose(result["confidence"], expected.max(axis=1), atol=1e-9)
    assert result["prediction"].tolist() == [
        SPEC.target.classes[index] for index in expected.argmax(axis=1)
    ]
    for name in SPEC.input_names:
        assert [None if pd.isna(v) else v for v in result[name]] == [row[name] for row in rows]


def test_bad_rows_are_set_aside_with_their_place_and_reasons(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    header = ",".join(["id", *SPEC.input_names])
    good = "a,Biscoe,48.6,16.0,230,5800,MALE"
    source.write_text(
        "\n".join(
            [
                header,
                good,
                "b,Atlantis,48.6,16.0,230,-5800,MALE",
                "c,Biscoe,long,16.0,230,5800,MALE",
                "d,Biscoe",
                good,
            ]
        )
    )
    summary, result = batch(source, tmp_path / "out")
    rejected = pd.read_parquet(summary.rejections)
    assert result["row_number"].tolist() == [1, 5]
    assert result["id"].tolist() == ["a", "a"]
    assert rejected["row_number"].tolist() == [2, 3, 4]
    assert rejected["source_file"].tolist() == ["in.csv"] * 3
    first, second, third = (list(reasons) for reasons in rejected["reasons"])
    assert first == [
        "island: must be one of Biscoe, Dream, Torgersen",
        "body_mass_g: must be between 1000 and 10000 g",
    ]
    assert second == ["culmen_length_mm: must be a number"]
    assert third == ["the row: must have one cell per column"]
    row = json.loads(rejected["input"][0])
    assert (row["id"], row["island"], row["body_mass_g"]) == ("b", "Atlantis", -5800)
    assert json.loads(rejected["input"][2]) == ["d", "Biscoe"]
    assert (summary.rows, summary.rejected, summary.rejected_share) == (5, 3, 0.6)
    assert sum(summary.reasons.values()) == 4


def test_a_parquet_file_keeps_the_types_of_what_is_carried_along(tmp_path: Path) -> None:
    frame = pd.DataFrame([ROW] * 3).assign(
        customer=[1, 2, 3], seen=pd.to_datetime(["2026-11-20"] * 3), body_mass_g=[1.0, 4000, np.inf]
    )
    frame.to_parquet(tmp_path / "in.parquet")
    summary, result = batch(tmp_path / "in.parquet", tmp_path / "out")
    assert result["customer"].tolist() == [2]
    assert result["seen"].dtype.kind == "M"
    documents = pd.read_parquet(summary.rejections)["input"].map(json.loads)
    assert [(d["customer"], d["body_mass_g"]) for d in documents] == [(1, 1.0), (3, "inf")]


def test_missing_is_missing_however_a_file_says_it(tmp_path: Path) -> None:
    text = (
        ",".join(SPEC.input_names)
        + "\n"
        + "\n".join(
            f"Biscoe,48.6,16.0,230,{missing},{missing}" for missing in ["", "NA", "nan", " . "]
        )
    )
    (tmp_path / "in.csv").write_text(text)
    summary, result = batch(tmp_path / "in.csv", tmp_path / "out")
    assert summary.rejected == 0
    assert result["body_mass_g"].isna().all()
    assert result["sex"].isna().all()


def test_a_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    csv_file(folder / "b.csv", [{**ROW, "id": "x"}])
    parquet_file(folder / "a.parquet", [ROW, ROW])
    (folder / "notes.txt").write_text("not data")
    _, result = batch(folder, tmp_path / "out")
    assert list(zip(result["source_file"], result["row_number"], result["id"], strict=True)) == [
        ("a.parquet", 1, None),
        ("a.parquet", 2, None),
        ("b.csv", 1, "x"),
    ]


def test_a_header_without_rows_gives_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(",".join(SPEC.input_names) + "\n")
    summary, result = batch(tmp_path / "in.csv", tmp_path / "out")
    assert (summary.rows, len(result), summary.rejected_share) == (0, 0, 0.0)


def test_progress_is_reported_with_each_chunk(tmp_path: Path) -> None:
    reported: list[str] = []
    batch(PENGUINS, tmp_path / "out", chunk_rows=100, progress=reported.append)
    assert reported[0] == "100 rows done, 0 of them rejected (penguins.csv)"
    assert reported[-1].startswith("344 rows done")


HEADER = ",".join(SPEC.input_names)
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "nothing at all": ("in.csv", b"", "is empty; it needs a header and rows"),
    "a column less": ("in.csv", b"island,sex\n", "lacks the columns culmen_length_mm"),
    "a column twice": ("in.csv", f"{HEADER},sex\n".encode(), "has the column sex twice"),
    "a name of the output": (
        "in.csv",
        f"{HEADER},prediction\n".encode(),
        "has the column prediction, a name that the predictions use",
    ),
    "latin-1": ("in.csv", f"{HEADER}\nBisc\xf6e".encode("latin-1"), "is not UTF-8"),
    "an open quote": ("in.csv", f'{HEADER}\n"Biscoe'.encode(), "is malformed at line 2"),
    "no Parquet": ("in.parquet", b"PAR1 no", "is no intact Parquet file"),
    "another kind": ("in.json", b"{}", "ends in none of .csv, .csv.gz, .tsv, .parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_data_is_reported_in_one_sentence(tmp_path: Path, case: str) -> None:
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        batch(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "out").glob("*")) == []


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no data at"):
        batch(tmp_path / "nowhere.csv", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.csv or \.parquet file"):
        batch(tmp_path / "empty", tmp_path / "out")


def test_predictions_do_not_land_among_their_input(tmp_path: Path) -> None:
    csv_file(tmp_path / "in.csv", [ROW])
    with pytest.raises(UserError, match="would land among their input"):
        batch(tmp_path, tmp_path)


def test_a_file_is_not_written_over_by_its_own_predictions(tmp_path: Path) -> None:
    source = parquet_file(tmp_path / "predictions.parquet", [ROW])
    with pytest.raises(UserError, match="would land among their input"):
        batch(source, tmp_path)
    assert len(pd.read_parquet(source)) == 1


def test_a_parquet_file_that_is_damaged_inside_is_reported(tmp_path: Path) -> None:
    source = parquet_file(tmp_path / "in.parquet", [ROW] * 2000)
    content = bytearray(source.read_bytes())
    content[4:200] = bytes(196)
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"is no intact Parquet file .*; write it anew\."):
        batch(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_batch_takes_the_place_of_an_earlier_one_only_when_it_is_whole(tmp_path: Path) -> None:
    source, output = csv_file(tmp_path / "in.csv", [ROW, ROW]), tmp_path / "out"
    batch(source, output)
    source.write_bytes(source.read_bytes() + b'"open')
    with pytest.raises(UserError):
        batch(source, output)
    assert len(pd.read_parquet(output / "predictions.parquet")) == 2
    assert len(list(output.iterdir())) == 2


BATCH_PROCESS = """
import sys
from pathlib import Path
import psutil
from mlschool_dagster.serving.batch import score
from mlschool_dagster.storage import LocalLocation
from mlschool_dagster_tests.serving.server import peak_memory
from mlschool_dagster_tests.serving.tiny_model import tiny_model
report = lambda text: print(text, flush=True)
output = LocalLocation(Path(sys.argv[2]))
summary = score(sys.argv[1], output, tiny_model(), "1", int(sys.argv[3]), report)
print("peak", peak_memory(psutil.Process()), summary.rows_per_second)
"""


def batch_process(source: Path, output: Path, chunk_rows: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BATCH_PROCESS, str(source), str(output), str(chunk_rows)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_batch_leaves_nothing_under_the_final_names(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "in.csv", [ROW] * 20_000)
    with batch_process(source, tmp_path / "out", 100) as process:
        assert process.stdout is not None
        assert "100 rows done" in process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    assert not (tmp_path / "out" / "rejected.parquet").exists()


def peak_megabytes(source: Path, output: Path) -> float:
    with batch_process(source, output, CHUNK_ROWS) as process:
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1].split()
    assert process.returncode == 0
    return float(last[1]) / 1024**2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_million_rows_take_no_more_memory_than_a_tenth_of_them(
    tmp_path: Path, suffix: str
) -> None:
    frame = pd.read_csv(PENGUINS, na_values="NA", keep_default_na=False)
    peaks = []
    for rows in (100_000, 1_000_000):
        source = tmp_path / f"{rows}{suffix}"
        grown = frame.sample(rows, replace=True, random_state=1)
        if suffix == ".csv":
            grown.to_csv(source, index=False, na_rep="NA")
        else:
            grown.to_parquet(source)
        peaks.append(peak_megabytes(source, tmp_path / f"out-{rows}"))
    assert peaks[1] < peaks[0] + 60
    assert peaks[1] < 450


INF, NAN = float("inf"), float("nan")


def strict_json(text: str) -> Any:
    """What is in `text`, which is JSON by the letter: without NaN and infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (INF, "inf"),
        ([1.0, -INF], [1.0, "-inf"]),
        ({"a": {"b": NAN}}, {"a": {"b": "nan"}}),
        (b"\xff", "b'\\xff'"),
        (datetime(2026, 11, 20, tzinfo=UTC), "2026-11-20 00:00:00+00:00"),
    ],
)
def test_what_is_carried_is_kept_whatever_it_is(tmp_path: Path, value: Any, shown: Any) -> None:
    frame = pd.DataFrame([ROW, {**ROW, "body_mass_g": -1.0}])
    table = pa.Table.from_pandas(frame).append_column("more", pa.array([value, value]))
    pq.write_table(table, tmp_path / "in.parquet")
    summary, _ = batch(tmp_path / "in.parquet", tmp_path / "out")
    kept = pq.read_table(summary.predictions)["more"].to_pylist()
    assert repr(kept) == repr(table["more"][:1].to_pylist())
    (document,) = pq.read_table(summary.rejections)["input"].to_pylist()
    assert strict_json(document)["more"] == shown


def test_texts_as_polars_writes_them_are_carried_along(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(pd.DataFrame([ROW, {**ROW, "body_mass_g": -1.0}]))
    table = table.append_column("id", pa.array(["a", "b"], pa.string_view()))
    pq.write_table(table, tmp_path / "in.parquet")
    summary, result = batch(tmp_path / "in.parquet", tmp_path / "out")
    assert result["id"].tolist() == ["a"]
    assert json.loads(pd.read_parquet(summary.rejections)["input"][0])["id"] == "b"


def test_values_that_the_joint_type_cannot_hold_are_reported_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pd.DataFrame([{**ROW, "id": 2**60 + 1}]).to_parquet(folder / "a.parquet")
    pd.DataFrame([{**ROW, "id": 0.5}]).to_parquet(folder / "b.parquet")
    with pytest.raises(UserError, match=r"Column id of a\.parquet has values that are no double"):
        batch(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_whose_name_is_not_utf8_is_named_readably(tmp_path: Path) -> None:
    try:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))
        csv_file(path, [ROW])
    except OSError:
        pytest.skip("this file system takes no such name")
    _, result = batch(path, tmp_path / "out")
    assert result["source_file"].tolist() == ["caf\N{REPLACEMENT CHARACTER}.csv"]
