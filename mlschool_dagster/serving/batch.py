"""Batch prediction: whole files, by the rules and the model that answer requests, in chunks."""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.source_files import opened_source, shown
from mlschool_dagster.dataset.spec import (
    CONFIDENCE,
    MODEL_VERSION,
    PREDICTION,
    PROBABILITY_PREFIX,
    ROW_NUMBER,
    SOURCE_FILE,
    DataSpec,
    NumericColumn,
    probability_column,
)
from mlschool_dagster.dataset.tables import TableChunk, TableFile, carried_schema, table_files
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import Array, CompiledModel
from mlschool_dagster.serving.column_rules import Rule, rules_of
from mlschool_dagster.storage import Location, checked_uri

if TYPE_CHECKING:
    import pyarrow as pa

PREDICTIONS_FILE = "predictions.parquet"
REJECTED_FILE = "rejected.parquet"
HEAD_ROWS = 8
TAKEN = frozenset({SOURCE_FILE, ROW_NUMBER, PREDICTION, CONFIDENCE, MODEL_VERSION})
"""Columns of the output, which no column that is carried along may be called."""

Reasons = Mapping[int, Sequence[str]]
"""Why rows of a chunk are rejected, by their position in it."""

CHUNK_ROWS = 20_000

MISSHAPEN = "the row: must have one cell per column"


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Result of a batch: counts of rows by class, and of rejected ones by reason.

    A row that is rejected for several reasons counts under each of them. ``carried`` names the
    columns that the model does not know and that stand beside the predictions.
    """

    predicted: int
    rejected: int
    classes: dict[str, int]
    reasons: dict[str, int]
    carried: list[str]
    predictions: str
    rejections: str
    head: list[dict[str, Any]]
    seconds: float

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return self.predicted + self.rejected

    @property
    def rejected_share(self) -> float:
        """The share of rows that were rejected, 0 if there were none at all."""
        return self.rejected / self.rows if self.rows else 0.0

    @property
    def rows_per_second(self) -> float:
        """How fast rows were read, judged, predicted on and written."""
        return self.rows / self.seconds


def score(
    source: str,
    output: Location,
    model: CompiledModel,
    version: str,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], None] = lambda message: None,
) -> BatchSummary:
    """Predict on every row of `source`, the URI of a CSV or Parquet file or of a folder of them.

    Into the folder `output` go the predictions (`PREDICTIONS_FILE`: file and row number, inputs,
    prediction, confidence, probability of each class, model version, other columns of `source`)
    and what was rejected (`REJECTED_FILE`: file and row number, reasons, and the row as JSON),
    each whole or not at all. Memory holds `chunk_rows` rows at a time.

    Raises:
        UserError: `source` cannot be read, or is not data for this model.
    """
    started = time.perf_counter()
    with opened_source(source) as path:
        files = table_files(path, model.spec)
        written_over = [output, output / PREDICTIONS_FILE, output / REJECTED_FILE]
        if checked_uri(source, "The input") in [place.uri for place in written_over]:
            raise UserError(
                f"The predictions would land among their input in {output.uri}; choose another "
                "folder."
            )
        return _score(path, files, output, model, version, chunk_rows, progress, started)


def _score(
    source: Path,
    files: Sequence[TableFile],
    output: Location,
    model: CompiledModel,
    version: str,
    chunk_rows: int,
    progress: Callable[[str], None],
    started: float,
) -> BatchSummary:
    carried = carried_schema(files)
    taken = [n for n in carried.names if n in TAKEN or n.startswith(PROBABILITY_PREFIX)]
    if taken:
        raise UserError(
            f"{shown(source)} has the column {taken[0]}, a name that the predictions use; rename "
            "or drop it."
        )
    rules = rules_of(model.spec)
    classes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rows = rejected = 0
    with outputs(output, model.spec, version, carried) as written:
        for file in files:
            for chunk in file.chunks(chunk_rows):
                faulty = _judge(chunk.rows, rules)
                valid = [at for at in range(len(chunk.rows)) if at not in faulty]
                written.reject(chunk, faulty)
                with np.errstate(all="ignore"):
                    probabilities = model.probabilities([chunk.rows[at] for at in valid])
                classes.update(written.predict(chunk, valid, probabilities))
                reasons.update(reason for issues in faulty.values() for reason in issues)
                rows += len(chunk.rows)
                rejected += len(faulty)
                progress(f"{rows:,} rows done, {rejected:,} of them rejected ({chunk.file})")
    return BatchSummary(
        predicted=rows - rejected,
        rejected=rejected,
        classes={label: classes[label] for label in model.spec.target.classes},
        reasons=dict(reasons.most_common()),
        carried=list(carried.names),
        predictions=(output / PREDICTIONS_FILE).uri,
        rejections=(output / REJECTED_FILE).uri,
        head=written.head,
        seconds=time.perf_counter() - started,
    )


def _judge(rows: Sequence[Any], rules: Mapping[str, Rule]) -> dict[int, list[str]]:
    """Faults of the invalid `rows`, by position."""
    issues: defaultdict[int, list[str]] = defaultdict(list)
    whole = []
    for at, row in enumerate(rows):
        if type(row) is dict:
            whole.append(at)
        else:
            issues[at].append(MISSHAPEN)
    for name, rule in rules.items():
        values = [rows[at][name] for at in whole]
        # Nearly every column is valid, which costs little to see as a whole.
        if values and not rule.fits(values):
            for at, value in zip(whole, values, strict=True):
                if (issue := rule.issue(value)) is not None:
                    issues[at].append(f"{name}: {issue.message}")
    return issues


@contextmanager
def outputs(
    folder: Location, spec: DataSpec, version: str, carried: "pa.Schema"
) -> "Iterator[Outputs]":
    """The files of one batch in `folder`; they take their names when the block ends without error.

    Where `PREDICTIONS_FILE` is, the `REJECTED_FILE` beside it is of the same batch.
    """
    from pyarrow.parquet import ParquetWriter

    predictions, rejections = folder / PREDICTIONS_FILE, folder / REJECTED_FILE
    predicted_schema, rejected_schema = _predicted_schema(spec, carried), _rejected_schema()
    with (
        predictions.writing() as predicted,
        rejections.writing() as rejected,
        ParquetWriter(predicted, predicted_schema) as predicted_writer,
        ParquetWriter(rejected, rejected_schema) as rejected_writer,
    ):
        yield Outputs(spec, version, predicted_writer, rejected_writer, [])
        # What was rejected takes its name first: it must not do so beside an older batch.
        predictions.remove()


@dataclass(frozen=True, slots=True)
class Outputs:
    """The two files of a batch while they are written."""

    spec: DataSpec
    version: str
    predicted: Any
    rejected: Any
    head: list[dict[str, Any]]
    """The first `HEAD_ROWS` rows that were predicted."""

    def predict(self, chunk: TableChunk, valid: Sequence[int], probabilities: Array) -> list[str]:
        """Write the rows of `chunk` at the positions `valid`, with their `probabilities`.

        Returns:
            Their predictions.
        """
        import pyarrow as pa

        classes = self.spec.target.classes
        predictions = [classes[index] for index in probabilities.argmax(axis=1).tolist()]
        columns: dict[str, Any] = {
            **_place(chunk, valid),
            **{name: [chunk.rows[at][name] for at in valid] for name in self.spec.input_names},
            PREDICTION: predictions,
            CONFIDENCE: probabilities.max(axis=1),
            **{probability_column(name): probabilities[:, i] for i, name in enumerate(classes)},
            MODEL_VERSION: [self.version] * len(valid),
        }
        schema = self.predicted.schema
        carried = chunk.carried.column_names
        for field in list(schema)[len(columns) :]:
            try:
                columns[field.name] = (
                    chunk.carried[field.name].take(pa.array(valid, pa.int64())).cast(field.type)
                    if field.name in carried
                    else pa.nulls(len(valid), field.type)
                )
            except pa.ArrowException as error:
                reason = str(error).partition("\n")[0].rstrip(".")
                raise UserError(
                    f"Column {field.name} of {chunk.file} has values that are no {field.type}, as "
                    f"which all files together have it ({reason}); write one type, or predict on "
                    "the files one by one."
                ) from None
        table = pa.table(columns, schema)
        self.head.extend(table.slice(0, HEAD_ROWS - len(self.head)).to_pylist())
        self.predicted.write_table(table)
        return predictions

    def reject(self, chunk: TableChunk, reasons: Reasons) -> None:
        """Write the rows of `chunk` that have `reasons`."""
        import pyarrow as pa

        positions = sorted(reasons)
        columns = {
            **_place(chunk, positions),
            "reasons": [list(reasons[at]) for at in positions],
            "input": [_document(chunk, at) for at in positions],
        }
        self.rejected.write_table(pa.table(columns, self.rejected.schema))


def _predicted_schema(spec: DataSpec, carried: "pa.Schema") -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            *_place_fields(),
            *(
                (c.name, pa.float64() if isinstance(c, NumericColumn) else pa.string())
                for c in spec.columns
            ),
            (PREDICTION, pa.string()),
            (CONFIDENCE, pa.float64()),
            *((probability_column(label), pa.float64()) for label in spec.target.classes),
            (MODEL_VERSION, pa.string()),
            *carried,
        ]
    )


def _rejected_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([*_place_fields(), ("reasons", pa.list_(pa.string())), ("input", pa.string())])


def _place_fields() -> "list[tuple[str, pa.DataType]]":
    import pyarrow as pa

    return [(SOURCE_FILE, pa.string()), (ROW_NUMBER, pa.int64())]


def _place(chunk: TableChunk, positions: Sequence[int]) -> dict[str, Any]:
    return {
        SOURCE_FILE: [chunk.file] * len(positions),
        ROW_NUMBER: [chunk.first_row + at for at in positions],
    }


def _document(chunk: TableChunk, at: int) -> str:
    row = chunk.rows[at]
    if isinstance(row, dict):
        row = {name: _plain(value) for name, value in row.items()} | {
            name: _plain(chunk.carried[name][at].as_py()) for name in chunk.carried.column_names
        }
    return json.dumps(row, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    # JSON has no word for what is not finite, wherever in a value it is.
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
