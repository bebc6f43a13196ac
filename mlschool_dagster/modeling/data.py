"""Reading a data set by URI into one canonical table."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec, NumericColumn

if TYPE_CHECKING:
    import pandas as pd

MISSING = frozenset({"", ".", "NA", "NaN", "nan"})
"""How a missing value may be written in a file."""

SHOWN_ROWS = 5
"""How many offending rows a sentence names before it only counts them."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One record of a file, and where it starts: ``file.csv:2``, counting lines from 1."""

    origin: str
    cells: list[str]


def read_data(uri: str, spec: DataSpec) -> "pd.DataFrame":
    """The data set at `uri`: one CSV file, or a folder whose CSV files are read in order of name.

    Files are UTF-8 with a header. White space around a cell is dropped; columns may come in any
    order; columns that the spec does not name are ignored, since raw tables carry identifiers and
    notes that are no input.

    Returns:
        One row per record: the spec's columns and then its target. Numeric columns are float64,
        the others strings; missing is NaN in both. The index names each row's place, as in
        ``rows.csv:2``, so that whoever refuses a row can say where it is.

    Raises:
        UserError: there is no such file, or it is empty, not UTF-8, malformed, lacks a column, or
            has text where a number belongs.
    """
    import pandas as pd

    frames = [_read_file(path, spec) for path in _files(uri)]
    return pd.concat(frames) if len(frames) > 1 else frames[0]


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


def _files(uri: str) -> list[Path]:
    path = _local_path(uri)
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise UserError(f"The data folder {path} holds no .csv file; put one there.")
        return files
    if not path.exists():
        raise UserError(f"There is no data at {path}; give the path of a CSV file or a folder.")
    return [path]


def _local_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in uri:
        raise UserError(
            f"Data cannot be read from {parts.scheme}:// ({uri}); give a path or a file:// URI."
        )
    return Path(uri)


def _read_file(path: Path, spec: DataSpec) -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    lines = _records(path)
    header = next(lines, None)
    if header is None:
        raise UserError(f"The data file {path} is empty; it needs a header and rows.")
    names = [*spec.input_names, spec.target.name]
    positions = _positions(path, header.cells, names)
    records = list(_checked(lines, header))
    if not records:
        raise UserError(f"The data file {path} has a header but no rows; add some.")
    frame = pd.DataFrame(
        {name: [line.cells[at].strip() for line in records] for name, at in positions.items()},
        index=pd.Index([line.origin for line in records], name="row"),
        dtype=object,
    )
    frame = frame.mask(frame.isin(MISSING), np.nan)
    for column in spec.columns:
        if isinstance(column, NumericColumn):
            frame[column.name] = _numbers(frame[column.name])
    return frame


def _records(path: Path) -> Iterator[_Line]:
    """The non-blank records of the file, the header first."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read: {error.strerror}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"The data file {path} is not UTF-8 (line {line}); save it in that encoding."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _Line(f"{path.name}:{start}", cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"The data file {path} is malformed at line {start}: {error}.") from None


def _positions(path: Path, header: list[str], names: list[str]) -> dict[str, int]:
    """Where in the header each of `names` stands."""
    found = [cell.strip() for cell in header]
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"The data file {path} lacks the column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}; its header has {', '.join(found)}."
        )
    repeated = [name for name in names if found.count(name) > 1]
    if repeated:
        raise UserError(
            f"The data file {path} has the column {repeated[0]} twice; keep one of them."
        )
    return {name: found.index(name) for name in names}


def _checked(lines: Iterator[_Line], header: _Line) -> Iterator[_Line]:
    for line in lines:
        if len(line.cells) != len(header.cells):
            raise UserError(
                f"Row {line.origin} has {len(line.cells)} cells where the header has "
                f"{len(header.cells)}; mend that row."
            )
        yield line


def _numbers(text: "pd.Series") -> "pd.Series":
    import pandas as pd

    numbers = pd.to_numeric(text, errors="coerce").astype("float64")
    wrong = text.index[numbers.isna() & text.notna()]
    if len(wrong):
        raise UserError(
            f"Column {text.name} must be numeric but has text such as {text[wrong[0]]!r} in "
            f"{describe_rows(wrong)}; write numbers, or NA where there is none."
        )
    return numbers
