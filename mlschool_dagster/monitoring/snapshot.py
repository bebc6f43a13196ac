"""A frozen table of a window: one Parquet file, written and read in pieces of bounded size.

Counting takes its time over text, so that where pieces are counted, text that repeats comes as
categories: the file has it as numbers anyway.

What the file must be told together with its rows (the store's token, what was refused) is in its
own metadata, so that it cannot come apart from them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 60_000
"""Most rows of a piece."""
SEED = 42
_FACTS = b"facts"
_EVENT_ID = "event_id"


def write_snapshot(frames: "Iterable[pd.DataFrame]", path: Path, **facts: Any) -> None:
    """Keep `frames`, one after the other, and `facts` (JSON-compatible) at `path`, all or nothing.

    The first frame says what the columns are, objects being text; it may be empty.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    remaining = iter(frames)
    first = next(remaining)
    objects = first.select_dtypes(object).columns
    typed = first.astype(dict.fromkeys(objects, "string"))
    schema = pa.Schema.from_pandas(typed, preserve_index=False).with_metadata(
        {_FACTS: json.dumps(facts).encode()}
    )
    with replacing(path) as temporary, ParquetWriter(temporary, schema) as writer:
        for frame in chain([first], remaining):
            table = pa.Table.from_pandas(frame, schema, preserve_index=False)
            writer.write_table(table, row_group_size=CHUNK)


class ParquetSnapshot:
    """The table that was frozen at `path`, as it was when this was made."""

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
        """What was frozen beside the rows."""
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

    def whole(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """All rows as one frame: about a kilobyte each."""
        frame: pd.DataFrame = self._file.read(columns).to_pandas()
        return frame

    def tail(self, rows: int) -> "pd.DataFrame":
        """The last `rows` rows, found without reading the others."""
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
