"""From a request's body to rows, whatever the rows hold.

JSON follows MLflow's scoring protocol: ``inputs`` or ``instances`` (a list of records, or a mapping
of columns), ``dataframe_split`` or ``dataframe_records``. CSV has a header row; an empty cell is
null, and the cells of numeric columns are read as numbers. What a row holds is judged elsewhere.
"""

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mlschool_dagster.serving.faults import Finding, InvalidRequestError, invalid

MAX_ROWS = 10_000
MAX_CONTAINERS = 500_000
"""Lists and objects in a body of JSON, each of which takes 30 times its two characters in memory;
what brackets there are in its texts count as well."""
MAX_LINE = 64 * 1024
"""Characters in a line of CSV, so that a header cannot unfold into millions of names."""
FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")


class Table(NamedTuple):
    """The rows of a request in order, at most `MAX_ROWS`; one that is no dict is `misshapen`."""

    rows: list[Any]
    misshapen: Finding


def require_few_containers(body: bytes) -> None:
    """Refuse `body`, JSON that is not parsed yet, if parsing it would fill the memory.

    Raises:
        InvalidRequestError: it may hold more than `MAX_CONTAINERS` lists and objects.
    """
    if len(body) <= 2 * MAX_CONTAINERS:
        return
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise invalid(
            Finding(
                f"the body holds more than {MAX_CONTAINERS} lists and objects; split it",
                "too many rows",
            )
        )


def table_of_json(document: Any) -> Table:
    """The rows in a parsed `document`.

    Raises:
        InvalidRequestError: it is none of `FORMATS`, or holds too many rows.
    """
    if type(document) is not dict or len(document) != 1:
        raise _no_table(f"the body must be an object with exactly one of {', '.join(FORMATS)}")
    ((key, content),) = document.items()
    if key in ("inputs", "instances") and type(content) is dict:
        return Table(_from_columns(content), _NO_OBJECT)
    if key in ("inputs", "instances", "dataframe_records"):
        if type(content) is not list:
            raise _no_table(f"{key} must be a list of records")
        return Table(_bounded(content), _NO_OBJECT)
    if key == "dataframe_split":
        return Table(_from_split(content), _NO_LIST)
    raise _no_table(f"the body must have one of {', '.join(FORMATS)}")


def table_of_csv(body: bytes, numeric: Collection[str]) -> Table:
    """The rows in `body`, with numbers in the columns named by `numeric`.

    What is no number in such a column stays text.

    Raises:
        InvalidRequestError: it is no CSV in UTF-8 (400), or is no table or holds too many rows
            (422).
    """
    try:
        text = body.decode("utf-8-sig")
        # Blank lines are no rows.
        lines = filter(None, csv.reader(_lines(text), strict=True))
        names = next(lines, [])
        data = list(islice(lines, MAX_ROWS + 1))
    except (UnicodeDecodeError, csv.Error):
        raise InvalidRequestError(400, "The body is not valid CSV.") from None
    if not names:
        raise InvalidRequestError(400, "The body must be CSV with a header row.")
    _require_different(names)
    readers = [number if name in numeric else _text for name in names]
    rows = [
        {name: read(cell) for name, read, cell in zip(names, readers, cells, strict=True)}
        if len(cells) == len(names)
        else None
        for cells in _bounded(data)
    ]
    return Table(rows, _NO_CELLS)


_NO_OBJECT = Finding("must be an object with one entry per column", "misshapen row")
_NO_LIST = Finding("must be a list with one value per column", "misshapen row")
_NO_CELLS = Finding("must have one cell per column", "misshapen row")


def _from_columns(columns: Mapping[str, Any]) -> list[Any]:
    if not any(type(values) is list for values in columns.values()):
        return [columns] if columns else []
    lengths = {len(values) if type(values) is list else None for values in columns.values()}
    if len(lengths) != 1:
        raise _no_table("the columns must be lists of one length")
    names = list(columns)
    _bounded(columns[names[0]])
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _from_split(content: Any) -> list[Any]:
    if type(content) is not dict or not {"columns", "data"} <= content.keys() <= {
        "columns",
        "data",
        "index",
    }:
        raise _no_table("dataframe_split must be an object with columns, data and perhaps index")
    names, data = content["columns"], content["data"]
    if type(names) is not list or not all(type(name) is str for name in names):
        raise _no_table("the columns of dataframe_split must be a list of names")
    _require_different(names)
    if type(data) is not list:
        raise _no_table("the data of dataframe_split must be a list of rows")
    width = len(names)
    return [
        dict(zip(names, row, strict=True)) if type(row) is list and len(row) == width else None
        for row in _bounded(data)
    ]


def _require_different(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise _no_table("the names of the columns must be different from each other")


def _bounded(rows: list[Any]) -> list[Any]:
    # Before anything is built from the rows: a small body can hold millions of empty ones.
    if len(rows) > MAX_ROWS:
        raise invalid(
            Finding(f"the request holds more than {MAX_ROWS} rows; split it", "too many rows")
        )
    return rows


def _no_table(told: str) -> InvalidRequestError:
    return invalid(Finding(told, "no table"))


def _lines(text: str) -> Iterator[str]:
    # A line may end in any way, but is left as it is: within quotes it belongs to the cell.
    for line in io.StringIO(text, newline=""):
        if len(line) > MAX_LINE:
            raise csv.Error
        yield line


def number(cell: str) -> float | str | None:
    """The number in `cell`, None if it is empty, or the text itself if it is no number."""
    if not cell:
        return None
    # Python reads 5_800 and digits of any script, which nobody means.
    if "_" in cell or not cell.isascii():
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def _text(cell: str) -> str | None:
    return cell or None
