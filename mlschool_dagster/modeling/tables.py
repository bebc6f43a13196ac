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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.errors import UserError, listed, quoted
from mlschool_dagster.modeling.cells import CsvRecords, cell_readers
from mlschool_dagster.modeling.source_files import (
    data_files,
    is_parquet,
    opened_text,
    reading,
    shown,
    text_lines,
)
from mlschool_dagster.modeling.spec import DataSpec, NumericColumn

if TYPE_CHECKING:
    import pyarrow as pa

MAX_COLUMNS = 2000
MAX_CELLS = 2_000_000
"""Most cells in a chunk: a wide table is read in fewer rows at a time."""
BUFFER_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file, the first of which is number ``first_row``.

    ``rows`` map the wanted columns to their values, whatever these are; one that has not as many
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
    """One CSV or Parquet file, the columns wanted of it and those that are carried along."""

    path: Path
    spec: DataSpec
    wanted: tuple[str, ...]
    carried: "pa.Schema"

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The file's rows, at most `size` at a time.

        Raises:
            UserError: the file is malformed, or not UTF-8.
        """
        name, first = shown(self.path.name), 1
        read = _parquet_chunks if is_parquet(self.path) else _csv_chunks
        size = max(1, min(size, MAX_CELLS // (len(self.wanted) + len(self.carried))))
        for rows, places, carried in read(self, size):
            yield Chunk(name, first, rows, places or list(range(first, first + len(rows))), carried)
            first += len(rows)


def table_files(
    source: Path, spec: DataSpec, *, with_target: bool = False, carry: bool = True
) -> list[TableFile]:
    """The file at `source`, or the files of data in that folder in order of name.

    Files that are hidden (``.name`` or ``_name``) or empty, and folders within, are none. Wanted
    are the inputs of `spec`, and its target if `with_target`; if `carry`, all else is carried.

    Raises:
        UserError: there are none, or one cannot be read, lacks a column that is wanted or has it in
            a type that it cannot be.
    """
    wanted = (*spec.input_names, *([spec.target.name] if with_target else []))
    paths = data_files(source)
    tables = [_table_file(path, spec, wanted, carry) for path in paths]
    found = [table for table in tables if table is not None]
    if not found:
        raise UserError(f"The data file {shown(paths[0])} is empty; it needs a header and rows.")
    return found


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
    path: Path, spec: DataSpec, wanted: tuple[str, ...], carry: bool
) -> TableFile | None:
    """The table in the file at `path`; None if the file is empty."""
    import pyarrow as pa

    with reading(path) as size:
        if not size:
            return None
        schema = _parquet_schema(path) if is_parquet(path) else _csv_schema(path, wanted)
    names = schema.names
    if not names:
        return None
    if len(names) > MAX_COLUMNS:
        raise UserError(
            f"{shown(path)} has {len(names)} columns, but at most {MAX_COLUMNS} are read; leave "
            "out those that are no data."
        )
    missing = [name for name in wanted if name not in names]
    if missing:
        # Of a file that is something else altogether, nothing is quoted.
        is_known = len(missing) < len(wanted)
        raise UserError(
            f"{shown(path)} lacks the column{'s' if len(missing) > 1 else ''} {listed(missing)}"
            + (
                f"; it has {listed(names)}."
                if is_known
                else "; do its names stand in the first line?"
            )
        )
    others = [name for name in names if name not in wanted] if carry else []
    repeated = sorted({name for name in [*wanted, *others] if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"{shown(path)} has the column {quoted(repeated[0])} twice; keep one of them."
        )
    if is_parquet(path):
        for name in wanted:
            _require_type(path, spec, schema.field(name))
    return TableFile(
        path, spec, wanted, pa.schema([_without_views(schema.field(name)) for name in others])
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
        wanted = "a number" if is_numeric else "text"
        raise UserError(
            f"Column {field.name} of {shown(path)} has the type {field.type}, but must be "
            f"{wanted}; write it as that."
        )


def _csv_schema(path: Path, wanted: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    with _csv_records(path, wanted) as records:
        return pa.schema([(name, pa.string()) for name in records.header if name])


def _csv_chunks(file: TableFile, size: int) -> Iterator[tuple[list[Any], list[int], "pa.Table"]]:
    import pyarrow as pa

    readers = cell_readers(file.spec)
    with reading(file.path), _csv_records(file.path, file.wanted) as records:
        names = records.header
        wanted = [(name, names.index(name), readers[name]) for name in file.wanted]
        carried = [(name, names.index(name)) for name in file.carried.names]
        width = len(names)
        numbered = ((records.line, cells) for cells in records)
        while chunk := list(islice(numbered, size)):
            rows: list[Any] = [
                {name: value_of(cells[at]) for name, at, value_of in wanted}
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
def _csv_records(path: Path, wanted: Sequence[str]) -> Iterator[CsvRecords]:
    """The records of the CSV file at `path`.

    Raises:
        UserError: it is no CSV.
    """
    with opened_text(path) as content:
        records = None
        try:
            records = CsvRecords(text_lines(content, path), wanted)
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
    names = [*file.wanted, *file.carried.names]
    with reading(file.path), _parquet(file.path) as opened:
        for batch in opened.iter_batches(size, columns=names):
            table = pa.Table.from_batches([batch]).replace_schema_metadata()
            columns = [
                [_value(value, readers[name]) for value in table[name].to_pylist()]
                for name in file.wanted
            ]
            rows = [dict(zip(file.wanted, row, strict=True)) for row in zip(*columns, strict=True)]
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
