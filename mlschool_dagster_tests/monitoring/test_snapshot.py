"""A snapshot holds what its store does, whole or in chunks, and is replaced as a whole."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import (
    CAPTURE_FIELDS,
    Capture,
    Columns,
    as_columns,
    capture_row,
)
from mlschool_dagster.capture.sqlite import SqliteStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import InputValue, probability_column
from mlschool_dagster.monitoring import snapshot
from mlschool_dagster.monitoring.snapshot import (
    ParquetSnapshot,
    captures_table,
    write_captures,
)
from mlschool_dagster_tests.monitoring.samples import SPEC, START, window

PIECE = 40
CLASSES = SPEC.target.classes


def captures(inputs: Sequence[dict[str, InputValue]]) -> list[Capture]:
    """A capture of each row, the later the smaller its confidence."""
    return [
        Capture(
            f"event {number}",
            START,
            "penguins",
            "3",
            row,
            CLASSES[number % 3],
            1 / (number + 1),
            {label: 1 / (number + place + 3) for place, label in enumerate(CLASSES)},
        )
        for number, row in enumerate(inputs)
    ]


def columns_of(inputs: Sequence[dict[str, InputValue]]) -> Columns:
    return as_columns([capture_row(capture) for capture in captures(inputs)], CAPTURE_FIELDS)


def simply(inputs: Sequence[dict[str, InputValue]]) -> list[dict[str, Any]]:
    """The rows of a snapshot, one value after the other."""
    return [
        {
            "event_id": capture.event_id,
            "captured_at": pd.Timestamp(capture.captured_at),
            "endpoint": capture.endpoint,
            "model_version": capture.model_version,
            "role": str(capture.role),
            "sampling_share": capture.sampling_share,
            **{column.name: number(capture.inputs.get(column.name)) for column in SPEC.numeric},
            **{column.name: text(capture.inputs.get(column.name)) for column in SPEC.categorical},
            "prediction": capture.prediction,
            "confidence": capture.confidence,
            **{probability_column(name): capture.probabilities[name] for name in CLASSES},
        }
        for capture in captures(inputs)
    ]


def number(value: InputValue) -> float | None:
    if isinstance(value, str):
        value = pd.to_numeric(value, errors="coerce")
    return None if value is None or np.isnan(value) else float(value)


def text(value: InputValue) -> str | None:
    return None if value is None else str(value)


INTEGERS = st.integers(-(2**63), 2**64 - 1)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | INTEGERS
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = {
    **{column.name: NUMBERS for column in SPEC.numeric},
    **{c.name: st.none() | st.sampled_from(c.categories) | TEXT for c in SPEC.categorical},
}
ODD = st.none() | st.booleans() | st.text("0123456789.e- x") | INTEGERS | st.floats(-1e9, 1e9)
ROWS = st.lists(
    st.fixed_dictionaries({}, optional=VALUES)
    | st.dictionaries(st.sampled_from(SPEC.input_names) | st.text('ab"\\\n'), ODD),
    max_size=8,
)


@given(inputs=ROWS)
@example(inputs=[{"body_mass_g": 2**53 + 1, "sex": "MALE"}, {"body_mass_g": 0.1 + 0.2}])
@example(inputs=[{"body_mass_g": 123456789012345678, "island": "Ünïcode \u2028 \x00 🐧"}])
@example(inputs=[{"body_mass_g": "4000"}, {"body_mass_g": "heavy"}, {"body_mass_g": True}])
@example(inputs=[{"sex": 1}, {"sex": 1.5}, {"sex": False}, {}])
@example(inputs=[{"body_mass_g": 1.7976931348623157e308}, {"body_mass_g": 5e-324}])
def test_a_table_holds_exactly_what_was_captured(inputs: list[dict[str, InputValue]]) -> None:
    assert captures_table(columns_of(inputs), SPEC).to_pylist() == simply(inputs)


def test_an_empty_table_has_the_types_of_a_full_one() -> None:
    empty, full = captures_table(columns_of([]), SPEC), captures_table(columns_of([{}]), SPEC)
    assert (empty.num_rows, full.num_rows) == (0, 1)
    assert empty.schema == full.schema
    frame = empty.to_pandas()
    assert frame["body_mass_g"].dtype == "float64"
    assert isinstance(frame["captured_at"].dtype, pd.DatetimeTZDtype)


def rows_of(frame: pd.DataFrame) -> list[dict[str, InputValue]]:
    """The inputs of `frame` as they are received."""
    rows: list[dict[str, InputValue]] = json.loads(
        frame[SPEC.input_names].to_json(orient="records")
    )
    return rows


@pytest.fixture
def columns() -> list[Columns]:
    """100 captures in pieces of 40."""
    rows = [capture_row(capture) for capture in captures(rows_of(window(100)))]
    return [
        as_columns(rows[start : start + PIECE], CAPTURE_FIELDS) for start in range(0, 100, PIECE)
    ]


@pytest.fixture
def table(
    columns: list[Columns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ParquetSnapshot:
    """100 rows, written and read in pieces of 40."""
    monkeypatch.setattr(snapshot, "CHUNK", PIECE)
    path = tmp_path / "table.parquet"
    write_captures(columns, SPEC, path, state="a-1", refusals={"b": 2})
    return ParquetSnapshot(path)


def test_a_snapshot_comes_back_as_it_was_written(table: ParquetSnapshot) -> None:
    assert table.facts == {"state": "a-1", "refusals": {"b": 2}}
    assert table.rows == 100
    expected = simply(rows_of(window(100)))
    pd.testing.assert_frame_equal(
        table.whole(), pd.DataFrame(expected).astype(table.whole().dtypes)
    )


def test_a_store_becomes_a_snapshot(tmp_path: Path) -> None:
    inputs = rows_of(window(100))
    store = SqliteStore(tmp_path / "captures.db")
    store.append(captures(inputs))
    columns = store.stream_columns(Window.of(START))
    write_captures(columns, SPEC, tmp_path / "table.parquet")
    whole = ParquetSnapshot(tmp_path / "table.parquet").whole()
    pd.testing.assert_frame_equal(whole, captures_table(columns_of(inputs), SPEC).to_pandas())


def test_rows_are_counted_by_combination(table: ParquetSnapshot) -> None:
    counts = table.counts("model_version", "prediction")
    assert counts == {("3", CLASSES[0]): 34, ("3", CLASSES[1]): 33, ("3", CLASSES[2]): 33}
    assert next(iter(counts)) == ("3", CLASSES[0])


def test_chunks_are_bounded_and_make_up_the_whole(table: ParquetSnapshot) -> None:
    chunks, whole = list(table.chunks()), table.whole()
    assert [len(chunk) for chunk in chunks] == [40, 40, 20]
    text = dict.fromkeys(whole.select_dtypes(object), "string")
    joined = pd.concat([chunk.astype(text) for chunk in chunks], ignore_index=True)
    pd.testing.assert_frame_equal(joined, whole.astype(text))
    assert all(chunk["sex"].dtype == "category" for chunk in chunks)
    assert all(list(chunk) == ["event_id"] for chunk in table.chunks(["event_id"]))


def test_the_tail_may_span_pieces(table: ParquetSnapshot) -> None:
    for rows in (1, 30, 200):
        pd.testing.assert_frame_equal(
            table.tail(rows), table.whole().tail(rows).reset_index(drop=True)
        )


def test_a_sample_is_the_same_each_time_and_reaches_everywhere(table: ParquetSnapshot) -> None:
    drawn = table.sample(60)
    pd.testing.assert_frame_equal(drawn, table.sample(60))
    assert drawn["event_id"].is_unique
    events = list(table.whole()["event_id"])
    positions = [events.index(event) for event in drawn["event_id"]]
    assert positions == sorted(positions)
    assert {position // PIECE for position in positions} == {0, 1, 2}
    pd.testing.assert_frame_equal(table.sample(100), table.whole())


def test_an_empty_snapshot_has_its_columns(table: ParquetSnapshot, tmp_path: Path) -> None:
    write_captures([], SPEC, tmp_path / "empty.parquet")
    empty = ParquetSnapshot(tmp_path / "empty.parquet")
    for frame in (empty.whole(), empty.tail(3), empty.sample(3), *empty.chunks()):
        assert list(frame.columns) == list(table.whole().columns)
        assert frame.empty
    assert len(list(empty.chunks())) == 1


def test_a_snapshot_whose_writing_fails_is_the_one_before(
    table: ParquetSnapshot, columns: list[Columns], tmp_path: Path
) -> None:
    def failing() -> Iterator[Columns]:
        yield from columns
        raise KeyError

    with pytest.raises(KeyError):
        write_captures(failing(), SPEC, tmp_path / "table.parquet", state="a-2")
    assert ParquetSnapshot(tmp_path / "table.parquet").facts["state"] == "a-1"
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
