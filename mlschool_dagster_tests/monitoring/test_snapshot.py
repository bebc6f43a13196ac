"""A frozen table comes back as it was, whole or in pieces, and is replaced as a whole."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from mlschool_dagster.monitoring import snapshot
from mlschool_dagster.monitoring.snapshot import ParquetSnapshot, write_snapshot
from mlschool_dagster_tests.monitoring.samples import window

PIECE = 40


@pytest.fixture
def whole() -> pd.DataFrame:
    rows = window(100)
    rows["sex"] = [None if pd.isna(sex) else sex for sex in rows["sex"]]
    return rows


@pytest.fixture
def table(whole: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParquetSnapshot:
    """100 rows, written and read in pieces of 40."""
    monkeypatch.setattr(snapshot, "CHUNK", PIECE)
    pieces = [whole.iloc[start : start + PIECE] for start in range(0, len(whole), PIECE)]
    write_snapshot(
        [whole.head(0), *pieces], tmp_path / "table.parquet", state="a-1", refusals={"b": 2}
    )
    return ParquetSnapshot(tmp_path / "table.parquet")


def test_what_was_frozen_comes_back(table: ParquetSnapshot, whole: pd.DataFrame) -> None:
    assert table.facts == {"state": "a-1", "refusals": {"b": 2}}
    assert table.rows == 100
    pd.testing.assert_frame_equal(table.whole(), whole)
    assert table.whole()["body_mass_g"].dtype == "float64"
    assert isinstance(table.whole()["captured_at"].dtype, pd.DatetimeTZDtype)


def test_chunks_are_bounded_and_make_up_the_whole(
    table: ParquetSnapshot, whole: pd.DataFrame
) -> None:
    chunks = list(table.chunks())
    assert [len(chunk) for chunk in chunks] == [40, 40, 20]
    text = dict.fromkeys(whole.select_dtypes(object), "string")
    together = pd.concat([chunk.astype(text) for chunk in chunks], ignore_index=True)
    pd.testing.assert_frame_equal(together, whole.astype(text))
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


def test_an_empty_table_has_its_columns(whole: pd.DataFrame, tmp_path: Path) -> None:
    write_snapshot([whole.head(0)], tmp_path / "table.parquet")
    table = ParquetSnapshot(tmp_path / "table.parquet")
    for empty in (table.whole(), table.tail(3), table.sample(3), *table.chunks()):
        assert list(empty.columns) == list(whole.columns)
        assert empty.empty
    assert len(list(table.chunks())) == 1


def test_a_column_may_be_missing_in_all_of_a_piece(whole: pd.DataFrame, tmp_path: Path) -> None:
    lacking = whole.assign(sex=None)
    write_snapshot([lacking, whole], tmp_path / "table.parquet")
    sexes = ParquetSnapshot(tmp_path / "table.parquet").whole()["sex"]
    assert sexes.isna().sum() == 100 + whole["sex"].isna().sum()


def test_a_table_whose_making_fails_is_the_one_before(
    table: ParquetSnapshot, whole: pd.DataFrame, tmp_path: Path
) -> None:
    def frames() -> Iterator[pd.DataFrame]:
        yield whole
        raise KeyError

    with pytest.raises(KeyError):
        write_snapshot(frames(), tmp_path / "table.parquet", state="a-2")
    assert ParquetSnapshot(tmp_path / "table.parquet").facts["state"] == "a-1"
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
