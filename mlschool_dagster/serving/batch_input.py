"""What batch prediction reads: tables in chunks, so that memory does not grow with them.

Each row keeps its place, the file's name and the row's number in it, counted from 1 and without the
header; columns that the model does not know are carried along as they are. In a CSV file a missing
value may be written in all the ways that training data may write it.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.data import MISSING
from mlschool_dagster.modeling.spec import (
    CONFIDENCE,
    MODEL_VERSION,
    PREDICTION,
    PROBABILITY_PREFIX,
    ROW_NUMBER,
    SOURCE_FILE,
    DataSpec,
)
from mlschool_dagster.serving.formats import number

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER_BYTES = 1024**2
SUFFIXES = (".csv", ".parquet")
TAKEN = frozenset({SOURCE_FILE, ROW_NUMBER, PREDICTION, CONFIDENCE, MODEL_VERSION})
"""Columns of the output, which no column that is carried along may be called."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file, the first of which is number ``first_row``.

    ``rows`` map the input columns to their values, whatever these are; one that has not as many
    cells as the header is the list of its cells. ``carried`` holds the other columns.
    """

    file: str
    first_row: int
    rows: list[Any]
    carried: "pa.Table"


@dataclass(frozen=True, slots=True)
class TableFile:
    """One CSV or Parquet file, its input columns and those that are carried along."""

    path: Path
    spec: DataSpec
    carried: "pa.Schema"

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The file's rows, at most `size` at a time.

        Raises:
            UserError: the file is malformed, or not UTF-8.
        """
        first = 1
        read = _csv_chunks if self.path.suffix == ".csv" else _parquet_chunks
        for rows, carried in read(self, size):
            yield Chunk(self.path.name, first, rows, carried)
            first += len(rows)


def table_files(source: Path, spec: DataSpec) -> list[TableFile]:
    """The file at `source`, or the CSV and Parquet files of that folder in order of name.

    Raises:
        UserError: there are none, or one cannot be read or lacks a column of `spec`.
    """
    if source.is_dir():
        paths = sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and _is_shown(p))
    else:
        paths = [source]
    if not paths:
        raise UserError(f"The folder {source} holds no .csv or .parquet file; put one there.")
    return [_table_file(path, spec) for path in paths]


def carried_schema(files: Sequence[TableFile]) -> "pa.Schema":
    """The columns that are carried along from any of `files`, with a type that fits them all.

    Raises:
        UserError: a column has types that no type fits.
    """
    import pyarrow as pa

    try:
        return pa.unify_schemas([file.carried for file in files], promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"The files of {files[0].path.parent} do not fit each other ({error}); predict on them "
            "one by one."
        ) from None


def _is_shown(path: Path) -> bool:
    return not path.name.startswith((".", "_"))


def _table_file(path: Path, spec: DataSpec) -> TableFile:
    import pyarrow as pa

    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is neither a .csv nor a .parquet file; give one of those.")
    schema = _csv_schema(path) if path.suffix == ".csv" else _parquet_schema(path)
    missing = [name for name in spec.input_names if name not in schema.names]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(schema.names) or 'none'}."
        )
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]} twice; keep one of them.")
    carried = [field for field in schema if field.name not in spec.input_names]
    taken = [f.name for f in carried if f.name in TAKEN or f.name.startswith(PROBABILITY_PREFIX)]
    if taken:
        raise UserError(
            f"{path} has the column {taken[0]}, a name that the predictions use; rename or drop it."
        )
    return TableFile(path, spec, pa.schema(carried))


def _csv_schema(path: Path) -> "pa.Schema":
    import pyarrow as pa

    header = next(_csv_records(path), [])
    return pa.schema([(name.strip(), pa.string()) for name in header])


def _parquet_schema(path: Path) -> "pa.Schema":
    with _parquet(path) as file:
        schema: pa.Schema = file.schema_arrow.remove_metadata()
        return schema


def _csv_chunks(file: TableFile, size: int) -> Iterator[tuple[list[Any], "pa.Table"]]:
    import pyarrow as pa

    records = _csv_records(file.path)
    names = [name.strip() for name in next(records)]
    numeric = {column.name for column in file.spec.numeric}
    inputs = [
        (name, names.index(name), _number if name in numeric else _text)
        for name in file.spec.input_names
    ]
    carried = [(name, names.index(name)) for name in file.carried.names]
    width = len(names)
    while chunk := list(islice(records, size)):
        rows: list[Any] = [
            {name: read(cells[at].strip()) for name, at, read in inputs}
            if len(cells) == width
            else cells
            for cells in chunk
        ]
        columns = {
            name: [cells[at] if len(cells) == width else None for cells in chunk]
            for name, at in carried
        }
        yield rows, pa.table(columns, file.carried)


def _number(cell: str) -> float | str | None:
    return None if cell in MISSING else number(cell)


def _text(cell: str) -> str | None:
    return None if cell in MISSING else cell


def _csv_records(path: Path) -> Iterator[list[str]]:
    """The records of the file that are not blank, the header first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                yield from filter(None, reader)
            except csv.Error as error:
                raise UserError(
                    f"{path} is malformed near line {reader.line_num} ({error}); mend it."
                ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it in that encoding.") from None


def _parquet_chunks(file: TableFile, size: int) -> Iterator[tuple[list[Any], "pa.Table"]]:
    import pyarrow as pa

    with _parquet(file.path) as opened:
        for batch in opened.iter_batches(size):
            table = pa.Table.from_batches([batch]).replace_schema_metadata()
            yield _values(table.select(file.spec.input_names)), table.select(file.carried.names)


def _values(table: "pa.Table") -> list[Any]:
    columns = [[_value(value) for value in column.to_pylist()] for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _value(value: Any) -> Any:
    # A table that came from a data frame has NaN where nothing is known.
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        # Read through small buffers, memory does not grow with the size of a row group.
        with ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (OSError, pa.ArrowException) as error:
        told = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{path} is no intact Parquet file ({told}); write it anew.") from None
