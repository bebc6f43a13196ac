"""A snapshot of a window: its captures or labels as one Parquet file, read in bounded chunks.

Captures are shaped like the reference that a version is packaged with: the spec's inputs,
``prediction``, ``confidence`` and one ``probability_<class>`` column a class. The store's token,
and what was refused, are in the file's own metadata, so that they cannot come apart from its rows.

Rows go from the store to Arrow column by column (`CaptureStore.stream_columns`): a million captures
become a snapshot without an object of Python for each of them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.records import (
    CAPTURE_FIELDS,
    LABEL_COLUMNS,
    Columns,
    as_columns,
    parse_objects,
)
from mlschool_dagster.dataset.spec import (
    CONFIDENCE,
    MODEL_VERSION,
    PREDICTION,
    ROLE,
    SAMPLING_SHARE,
    DataSpec,
    probability_column,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

CHUNK = 60_000
"""Most rows of a chunk."""
SEED = 42
_FACTS = b"facts"
_EVENT_ID = "event_id"


def captures_table(captures: Columns, spec: DataSpec) -> "pa.Table":
    """The columns of some captures (`CaptureStore.stream_columns`) as a table, one row an event.

    Columns: ``event_id``, ``captured_at`` (UTC), ``endpoint``, ``model_version``, ``role``,
    ``sampling_share``; the spec's inputs, numeric ones as float, categorical ones as string;
    ``prediction``, ``confidence``, ``probability_<class>``. A number that was received as text
    counts as one; what is no number is missing from a numeric column.
    """
    import pyarrow as pa

    def text(name: str) -> pa.Array:
        return pa.array(captures[name], pa.string())

    inputs, probabilities = (parse_objects(captures[name]) for name in ("inputs", "probabilities"))
    columns = {
        _EVENT_ID: text(_EVENT_ID),
        "captured_at": _instants(captures["captured_at"]),
        **{name: text(name) for name in ("endpoint", MODEL_VERSION, ROLE)},
        SAMPLING_SHARE: pa.array(captures[SAMPLING_SHARE], pa.float64()),
    }
    for numeric in spec.numeric:
        columns[numeric.name] = _numbers([row.get(numeric.name) for row in inputs])
    for categorical in spec.categorical:
        columns[categorical.name] = _texts([row.get(categorical.name) for row in inputs])
    columns[PREDICTION] = text(PREDICTION)
    columns[CONFIDENCE] = pa.array(captures[CONFIDENCE], pa.float64())
    for label in spec.target.classes:
        shares = [row.get(label) for row in probabilities]
        columns[probability_column(label)] = pa.array(shares, pa.float64())
    return pa.table(columns)


def labels_table(labels: Columns) -> "pa.Table":
    """The columns of some labels (`CaptureStore.stream_label_columns`) as a table."""
    import pyarrow as pa

    return pa.table(
        {
            name: _instants(values) if name.endswith("_at") else pa.array(values, pa.string())
            for name, values in labels.items()
        }
    )


def write_captures(captures: Iterable[Columns], spec: DataSpec, path: Path, **facts: Any) -> None:
    """Write the snapshot of a window's `captures` (`CaptureStore.stream_columns`)."""
    tables = (captures_table(columns, spec) for columns in captures)
    _write(tables, captures_table(as_columns([], CAPTURE_FIELDS), spec), path, facts)


def write_labels(labels: Iterable[Columns], path: Path, **facts: Any) -> None:
    """Write the snapshot of a window's `labels` (`CaptureStore.stream_label_columns`)."""
    empty = labels_table(as_columns([], LABEL_COLUMNS))
    _write(map(labels_table, labels), empty, path, facts)


def _write(
    tables: "Iterable[pa.Table]", empty: "pa.Table", path: Path, facts: dict[str, Any]
) -> None:
    """Write `tables` and `facts` (JSON-compatible) to `path`, all or nothing."""
    from pyarrow.parquet import ParquetWriter

    schema = empty.schema.with_metadata({_FACTS: json.dumps(facts).encode()})
    # Event ids and times do not repeat.
    repeated = [name for name in schema.names if name not in (_EVENT_ID, "captured_at")]
    with (
        replacing(path) as temporary,
        ParquetWriter(temporary, schema, use_dictionary=repeated) as writer,
    ):
        for group in _row_groups(tables):
            writer.write_table(group.cast(schema), row_group_size=CHUNK)


def _row_groups(tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
    """The rows of `tables`, about `CHUNK` at a time."""
    import pyarrow as pa

    group: list[pa.Table] = []
    for table in tables:
        if group and sum(map(len, group)) + len(table) > CHUNK:
            yield pa.concat_tables(group)
            group = []
        group.append(table)
    if group:
        yield pa.concat_tables(group)


def _instants(microseconds: Sequence[int]) -> "pa.Array":
    import pyarrow as pa

    instants = pa.array(microseconds, pa.timestamp("us", tz="UTC"))
    return instants.cast(pa.timestamp("ns", tz="UTC"))


def _numbers(values: "list[Any]") -> "pa.Array":
    import pyarrow as pa

    try:
        return pa.array(values, pa.float64())
    except pa.ArrowInvalid:
        # Text, or an integer that no float is exactly.
        import pandas as pd

        numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
        return pa.array(numbers.astype(float), from_pandas=True)


def _texts(values: "list[Any]") -> "pa.Array":
    import pyarrow as pa

    try:
        return pa.array(values, pa.string())
    except pa.ArrowTypeError:
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def event_hashes(events: "pd.Series[Any]") -> "npt.NDArray[np.int64]":
    """A number for each event id, the same for the same id within a process.

    No two of a million hashes of 64 bits are equal by chance, but for one time in 10^7; and no
    client can make them so, because Python draws the key of its hashes anew for each process.
    """
    import numpy as np

    return np.fromiter(map(hash, events), dtype=np.int64, count=len(events))


class ParquetSnapshot:
    """The snapshot at `path`, as it was when this was opened."""

    def __init__(self, path: Path) -> None:
        from pyarrow import OSFile, types
        from pyarrow.parquet import ParquetFile

        source = OSFile(str(path))
        self._file = ParquetFile(source)
        repeated = [
            field.name
            for field in self._file.schema_arrow
            if types.is_string(field.type) and field.name != _EVENT_ID
        ]
        self._categorical = ParquetFile(
            source, metadata=self._file.metadata, read_dictionary=repeated
        )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Metadata that was written with the rows."""
        facts: dict[str, Any] = json.loads(self._file.schema_arrow.metadata[_FACTS])
        return facts

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self._file.metadata.num_rows)

    def chunks(self, columns: Sequence[str] | None = None) -> "Iterator[pd.DataFrame]":
        """The rows in their order, in frames of at most `CHUNK`; without any, one empty frame.

        Text is categorical, but for event ids.
        """
        for groups in self._pieces():
            table = self._categorical.read_row_groups(groups, columns)
            # Event ids do not repeat: looking for equal ones would take longest.
            yield table.to_pandas(deduplicate_objects=False)

    def _pieces(self) -> Iterator[list[int]]:
        """The row groups in their order, as many at a time as `CHUNK` rows hold."""
        piece: list[int] = []
        rows = 0
        for group in range(self._file.num_row_groups):
            more = self._file.metadata.row_group(group).num_rows
            if piece and rows + more > CHUNK:
                yield piece
                piece, rows = [], 0
            piece.append(group)
            rows += more
        yield piece

    def counts(self, *columns: str) -> dict[tuple[str, ...], int]:
        """How many rows there are of each combination of the text in `columns`, most first."""
        groups = (
            self._file.read(list(columns)).group_by(list(columns)).aggregate([([], "count_all")])
        )
        names = zip(*(groups[column].to_pylist() for column in columns), strict=True)
        counted = zip(names, groups["count_all"].to_pylist(), strict=True)
        return dict(sorted(counted, key=lambda entry: -entry[1]))

    def whole(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """All rows as one frame: about a kilobyte each."""
        frame: pd.DataFrame = self._file.read(columns).to_pandas()
        return frame

    def tail(self, rows: int) -> "pd.DataFrame":
        """The last `rows` rows, without reading the others."""
        import pandas as pd

        pieces: list[pd.DataFrame] = []
        for group in reversed(range(self._file.num_row_groups)):
            if sum(map(len, pieces)) >= rows:
                break
            pieces.insert(0, self._file.read_row_group(group).to_pandas())
        return pd.concat(pieces).tail(rows).reset_index(drop=True) if pieces else self.whole()

    def sample(self, rows: int) -> "pd.DataFrame":
        """`rows` rows in their order, drawn uniformly with a fixed seed; all if there are less."""
        import numpy as np
        import pyarrow as pa

        if rows >= self.rows:
            return self.whole()
        drawn = np.sort(np.random.default_rng(SEED).choice(self.rows, rows, replace=False))
        pieces, start = [], 0
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group)
            low, high = np.searchsorted(drawn, [start, start + len(table)])
            pieces.append(table.take(drawn[low:high] - start))
            start += len(table)
        frame: pd.DataFrame = pa.concat_tables(pieces).to_pandas()
        return frame
