"""Reading a data set by URI into one canonical table."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from mlschool_dagster.errors import UserError, quoted
from mlschool_dagster.modeling.source_files import local_path, shown
from mlschool_dagster.modeling.spec import DataSpec, NumericColumn
from mlschool_dagster.modeling.tables import Chunk, table_files

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 5
"""How many offending rows a sentence names before it only counts them."""
CHUNK_ROWS = 20_000


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

    source = local_path(uri)
    names = [*spec.input_names, spec.target.name]
    origins: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for chunk in chain.from_iterable(
        file.chunks(CHUNK_ROWS) for file in table_files(source, spec, with_target=True, carry=False)
    ):
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

    It tells the values, their columns and the order of rows (on which training depends) apart, and
    nothing else: not how the rows are spread over files, how a file quotes, the order of columns,
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


def _require_whole(chunk: Chunk) -> None:
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
