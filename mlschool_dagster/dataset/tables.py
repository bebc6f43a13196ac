"""Tables in files, CSV and Parquet, in chunks: what training data and batches are both read from.

A source is one file, or a folder of them. Each row keeps its place; columns that nobody asked for
are left out, or carried along as they are. Cells are read by the rules of `cells`.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.dataset.cells import CsvRecords, cell_readers
from mlschool_dagster.dataset.source_files import (
    data_files,
    is_parquet,
    opened_source,
    opened_text,
    reading,
    shown,
    text_lines,
)
from mlschool_dagster.dataset.spec import DataSpec, NumericColumn
from mlschool_dagster.errors import UserError, listed, quoted

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_COLUMNS = 2000
MAX_CELLS = 2_000_000
"""Most cells in a chunk: a wide table is read in fewer rows at a time."""
BUFFER_BYTES = 1024**2
CHUNK_ROWS = 20_000
"""Rows of a chunk when a whole data set is read."""
SHOWN_ROWS = 5
"""How many offending rows a sentence names before it only counts them."""


@dataclass(frozen=True, slots=True)
class TableChunk:
    """Some rows of one file, the first of which is number ``first_row``.

    ``rows`` map the required columns to their values, whatever these are; one that has not as many
    cells as the header is the list of its cells. ``places`` are their lines in a CSV file, their
    numbers in a Parquet file. ``carried`` holds the other columns.
    """

    file: str
    first_row: int
    rows: list[Any]
    places: list[int]
    carried: "pa.Table"


@dataclass(frozen=True, slots=True)
class TableFile:
    """One CSV or Parquet file, the columns required of it and those that are carried along."""

    path: Path
    spec: DataSpec
    required: tuple[str, ...]
    carried: "pa.Schema"

    def chunks(self, size: int) -> Iterator[TableChunk]:
        """The file's rows, at most `size` at a time.

        Raises:
            UserError: the file is malformed, or not UTF-8.
        """
        name, first = shown(self.path.name), 1
        read = _parquet_chunks if is_parquet(self.path) else _csv_chunks
        size = max(1, min(size, MAX_CELLS // (len(self.required) + len(self.carried))))
        for rows, places, carried in read(self, size):
            yield TableChunk(
                name, first, rows, places or list(range(first, first + len(rows))), carried
            )
            first += len(rows)


def table_files(
    source: Path, spec: DataSpec, *, with_target: bool = False, carry: bool = True
) -> list[TableFile]:
    """The file at `source`, or the files of data in that folder in order of name.

    Files that are hidden (``.name`` or ``_name``) or empty, and folders within, are none. Required
    are the inputs of `spec`, and its target if `with_target`; if `carry`, all else is carried.

    Raises:
        UserError: there are none, or one cannot be read, lacks a required column or has it in a
            type that it cannot be.
    """
    required = (*spec.input_names, *([spec.target.name] if with_target else []))
    paths = data_files(source)
    tables = [_table_file(path, spec, required, carry) for path in paths]
    tables_with_rows = [table for table in tables if table is not None]
    if not tables_with_rows:
        raise UserError(f"The data file {shown(paths[0])} is empty; it needs a header and rows.")
    return tables_with_rows


def carried_schema(files: Sequence[TableFile]) -> "pa.Schema":
    """The columns that are carried along from any of `files`, with a type that fits them all.

    Raises:
        UserError: a column has types that no type fits.
    """
    import pyarrow as pa

    fields: dict[str, tuple[pa.Field, TableFile]] = {}
    for file in files:
        for field in file.carried:
            known, first = fields.get(field.name, (field, file))
            try:
                (joint,) = pa.unify_schemas(
                    [pa.schema([known]), pa.schema([field])], promote_options="permissive"
                )
            except pa.ArrowException:
                raise UserError(
                    f"Column {field.name} is {known.type} in {shown(first.path)} and {field.type} "
                    f"in {shown(file.path)}, which do not fit each other; write one type, or "
                    "predict on the files one by one."
                ) from None
            fields[field.name] = (joint, first)
    return pa.schema([field for field, _ in fields.values()])


def _table_file(
    path: Path, spec: DataSpec, required: tuple[str, ...], carry: bool
) -> TableFile | None:
    """The table in the file at `path`; None if the file is empty."""
    import pyarrow as pa

    with reading(path) as size:
        if not size:
            return None
        schema = _parquet_schema(path) if is_parquet(path) else _csv_schema(path, required)
    names = schema.names
    if not names:
        return None
    if len(names) > MAX_COLUMNS:
        raise UserError(
            f"{shown(path)} has {len(names)} columns, but at most {MAX_COLUMNS} are read; leave "
            "out those that are no data."
        )
    missing = [name for name in required if name not in names]
    if missing:
        # Of a file that is something else altogether, nothing is quoted.
        is_known = len(missing) < len(required)
        raise UserError(
            f"{shown(path)} lacks the column{'s' if len(missing) > 1 else ''} {listed(missing)}"
            + (
                f"; it has {listed(names)}."
                if is_known
                else "; do its names stand in the first line?"
            )
        )
    others = [name for name in names if name not in required] if carry else []
    repeated = sorted({name for name in [*required, *others] if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"{shown(path)} has the column {quoted(repeated[0])} twice; keep one of them."
        )
    if is_parquet(path):
        for name in required:
            _require_type(path, spec, schema.field(name))
    return TableFile(
        path, spec, required, pa.schema([_without_views(schema.field(name)) for name in others])
    )


def _without_views(field: "pa.Field") -> "pa.Field":
    """`field` with a type that Arrow can pick values of: not a view, which Polars writes."""
    import pyarrow as pa

    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return field.with_type(plain.get(field.type, field.type))


def _require_type(path: Path, spec: DataSpec, field: "pa.Field") -> None:
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    is_numeric = any(isinstance(c, NumericColumn) and c.name == field.name for c in spec.columns)
    fits = (
        (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
        if is_numeric
        else (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    )
    if not any(is_one(kind) for is_one in fits):
        required = "a number" if is_numeric else "text"
        raise UserError(
            f"Column {field.name} of {shown(path)} has the type {field.type}, but must be "
            f"{required}; write it as that."
        )


def _csv_schema(path: Path, required: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    with _csv_records(path, required) as records:
        return pa.schema([(name, pa.string()) for name in records.header if name])


def _csv_chunks(file: TableFile, size: int) -> Iterator[tuple[list[Any], list[int], "pa.Table"]]:
    import pyarrow as pa

    readers = cell_readers(file.spec)
    with reading(file.path), _csv_records(file.path, file.required) as records:
        names = records.header
        required = [(name, names.index(name), readers[name]) for name in file.required]
        carried = [(name, names.index(name)) for name in file.carried.names]
        width = len(names)
        numbered = ((records.line, cells) for cells in records)
        while chunk := list(islice(numbered, size)):
            rows: list[Any] = [
                {name: value_of(cells[at]) for name, at, value_of in required}
                if len(cells) == width
                else cells
                for _, cells in chunk
            ]
            columns = {
                name: [cells[at] if len(cells) == width else None for _, cells in chunk]
                for name, at in carried
            }
            yield rows, [line for line, _ in chunk], pa.table(columns, file.carried)


@contextmanager
def _csv_records(path: Path, required: Sequence[str]) -> Iterator[CsvRecords]:
    """The records of the CSV file at `path`.

    Raises:
        UserError: it is no CSV.
    """
    with opened_text(path) as content:
        records = None
        try:
            records = CsvRecords(text_lines(content, path), required)
            yield records
        except csv.Error as error:
            line = records.line if records else 1
            raise UserError(
                f"{shown(path)} is malformed at line {line} ({error}); mend it."
            ) from None


def _parquet_schema(path: Path) -> "pa.Schema":
    with _parquet(path) as file:
        schema: pa.Schema = file.schema_arrow.remove_metadata()
        return schema


def _parquet_chunks(
    file: TableFile, size: int
) -> Iterator[tuple[list[Any], list[int], "pa.Table"]]:
    import pyarrow as pa

    readers = cell_readers(file.spec)
    names = [*file.required, *file.carried.names]
    with reading(file.path), _parquet(file.path) as opened:
        for batch in opened.iter_batches(size, columns=names):
            table = pa.Table.from_batches([batch]).replace_schema_metadata()
            columns = [
                [_value(value, readers[name]) for value in table[name].to_pylist()]
                for name in file.required
            ]
            rows = [
                dict(zip(file.required, row, strict=True)) for row in zip(*columns, strict=True)
            ]
            yield rows, [], table.select(file.carried.names).cast(file.carried)


def _value(value: Any, read: Any) -> Any:
    if isinstance(value, str):
        return read(value)
    if isinstance(value, Decimal):
        value = float(value)
    # A table that came from a data frame has NaN where nothing is known.
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    # Read through small buffers, memory does not grow with the size of a row group. Arrow itself
    # opens no file whose name is not UTF-8.
    with (
        path.open("rb") as content,
        ParquetFile(content, pre_buffer=False, buffer_size=BUFFER_BYTES) as file,
    ):
        yield file


def read_data(uri: str, spec: DataSpec) -> "pd.DataFrame":
    """The data set at `uri`: one file, or a folder whose files are read in order of name.

    Which files, and what their cells mean, is what `tables` and `cells` say. Columns may come in
    any order; those that the spec does not name are ignored, since raw tables carry identifiers and
    notes that are no input.

    Returns:
        One row per record: the spec's columns and then its target. Numeric columns are float64,
        the others strings; missing is NaN in both. The index names each row's place, its line in a
        CSV file (``rows.csv:2``) or its number in a Parquet file.

    Raises:
        UserError: there is no such file, or it is empty, no UTF-8, malformed, lacks a column, or
            has text where a number belongs.
    """
    import numpy as np
    import pandas as pd

    names = [*spec.input_names, spec.target.name]
    origins: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    with opened_source(uri) as source:
        files = table_files(source, spec, with_target=True, carry=False)
        for chunk in chain.from_iterable(file.chunks(CHUNK_ROWS) for file in files):
            _require_whole(chunk)
            origins += [f"{chunk.file}:{place}" for place in chunk.places]
            for name, values in columns.items():
                values += [row[name] for row in chunk.rows]
        if not origins:
            raise UserError(f"The data in {shown(source)} has a header but no rows; add some.")
    # Without a name, the index meets no column of that name.
    frame = pd.DataFrame(columns, index=pd.Index(origins), dtype=object)
    frame = frame.mask(frame.isna(), np.nan)
    for column in spec.columns:
        if isinstance(column, NumericColumn):
            frame[column.name] = _numbers(frame[column.name])
    return frame


def describe_rows(rows: "pd.Index") -> str:
    """The first of `rows` by name, and how many more there are: ``row a.csv:2`` or ``rows ...``."""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"


def content_digest(frame: "pd.DataFrame") -> str:
    """The SHA-256 of the table's content, in hexadecimal.

    It depends on the values, their columns and the order of rows (as training does), and on nothing
    else: not how the rows are spread over files, how a file quotes, the order of columns,
    or the index.
    """
    import hashlib
    import json

    import numpy as np
    import pandas as pd

    digest = hashlib.sha256()
    for name in sorted(frame.columns):
        column = frame[name]
        digest.update(json.dumps([name, len(column)]).encode())
        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype="<f8", na_value=np.nan) + 0.0
            # One bit pattern for all NaN; adding zero has turned -0.0 into 0.0.
            values[np.isnan(values)] = np.nan
            digest.update(values.tobytes())
        else:
            cells = [None if missing else str(value) for value, missing in _with_missing(column)]
            digest.update(json.dumps(cells).encode())
    return digest.hexdigest()


def _with_missing(column: "pd.Series") -> Iterator[tuple[object, bool]]:
    return zip(column, column.isna(), strict=True)


def _require_whole(chunk: TableChunk) -> None:
    for row, place in zip(chunk.rows, chunk.places, strict=True):
        if type(row) is not dict:
            raise UserError(
                f"Row {chunk.file}:{place} has {len(row)} cells, which is not as many as the "
                "header has; mend that row."
            )


def _numbers(values: "pd.Series") -> "pd.Series":
    is_text = values.map(lambda value: isinstance(value, str)).astype(bool)
    wrong = values.index[is_text]
    if len(wrong):
        example = values[is_text].iloc[0]
        comma = "a decimal point" if "," in example else "numbers"
        raise UserError(
            f"Column {values.name} must be numeric but has text such as {quoted(example)!r} in "
            f"{describe_rows(wrong)}; write {comma}, or NA where there is none."
        )
    return values.astype("float64")
