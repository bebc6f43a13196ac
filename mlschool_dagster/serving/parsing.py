"""From a request's body to rows, whatever the rows hold.

JSON follows MLflow's scoring protocol: ``inputs`` or ``instances`` (a list of records, or a mapping
of columns), ``dataframe_split`` or ``dataframe_records``. What else stands beside the rows, such as
``params`` or ``client_request_id``, is nothing that a model here could use, and is ignored. CSV has
a header row, and is read by the rules of `dataset.cells` as training data is. What a row holds is
judged elsewhere.
"""

import csv
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from mlschool_dagster.dataset.cells import CsvRecords, cell_readers, text_reader
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.serving.validation_errors import (
    InvalidRequestError,
    ValidationIssue,
    invalid,
    shown,
)

MAX_ROWS = 10_000
MAX_CONTAINERS = 500_000
"""Lists and objects in a body of JSON, each of which takes 30 times its two characters in memory;
what brackets there are in its texts count as well."""
FEWEST_VALUES = 400_000
"""Commas that a body of JSON may hold in any case: parsing holds the interpreter, and with it every
other request, for as long as there are values to make objects of."""
PIECE = 64 * 1024
"""Bytes of JSON that are parsed at a time, which takes about a millisecond."""
_LAYOUTS = (
    (re.compile(rb"\[(?=\s*\{)"), re.compile(rb"\}\s*,\s*\{")),
    (re.compile(rb'"data"\s*:\s*\[(?=\s*\[)'), re.compile(rb"\]\s*,\s*\[")),
)
"""Text before the first row and between two, where rows are objects and where they are lists."""
MAX_LINE = 64 * 1024
"""Characters in a line of CSV, so that a header cannot unfold into millions of names."""
MAX_LINES = 100_000
"""Lines of CSV, blank ones included."""
MAX_COLUMNS = 10_000
MAX_DEPTH = 32
FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")
_FORMATS = frozenset(FORMATS)
_EXACT_DIGITS = 19
_NEAR = 20
_SHOWN_NAMES = 3
_ONE_FORMAT = f"the body must be an object with exactly one of {', '.join(FORMATS)}"


class Table(NamedTuple):
    """The rows of a request in order, at most `MAX_ROWS`; one that is no dict is `misshapen`."""

    rows: list[Any]
    misshapen: ValidationIssue


def document_of(body: bytes, columns: int) -> Any:
    """The JSON document in `body`, whose rows have about so many `columns`.

    It may begin with a byte order mark. NaN, which pandas and MLflow's client write for a missing
    value, is null; Infinity is a number that no column takes.

    Raises:
        InvalidRequestError: 400 if it is malformed, not UTF-8 or nested too deep, 422 if it holds
            more than `MAX_CONTAINERS` lists and objects, so that parsing it would fill the memory,
            or many more values than `MAX_ROWS` have.
    """
    if len(body) > FEWEST_VALUES:
        _require_few(body, b"[{", MAX_CONTAINERS, "lists and objects")
        _require_few(body, b",", max(FEWEST_VALUES, 2 * columns * MAX_ROWS), "values")
    if len(body) > PIECE and (document := _document_in_pieces(body)) is not None:
        return document
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _document_beyond_the_standard(body)


def _document_in_pieces(body: bytes) -> Any:
    """The document in `body`, parsed a few rows at a time; None if it is not of the usual layout.

    The parser holds the interpreter: all other requests would wait for a body of megabytes. Where
    to cut is a guess that cannot go wrong: texts that are JSON arrays are one array when they are
    joined, and what is around the rows is parsed with a mark in their place.
    """
    for begin, between in _LAYOUTS:
        first, last = begin.search(body), body.rfind(b"]")
        if first is None or last < first.end():
            continue
        at, mark = first.end(), uuid4().hex
        try:
            document = orjson.loads(b'%b"%b"%b' % (body[:at], mark.encode(), body[last:]))
            rows = _rows_of(document)
            if rows != [mark]:
                continue
            rows.clear()
            while at < last:
                cut = between.search(body, min(at + PIECE, last), last)
                end = last if cut is None else cut.start() + 1
                rows += orjson.loads(b"[%b]" % body[at:end])
                at = last if cut is None else cut.end() - 1
                # Let the event loop have the interpreter.
                time.sleep(0)
        except orjson.JSONDecodeError:
            continue
        return document
    return None


def _rows_of(document: Any) -> Any:
    """The list of rows in `document`, if it has one."""
    forms = [document[form] for form in FORMATS if form in document] if document else []
    content = forms[0] if len(forms) == 1 else None
    return content.get("data") if type(content) is dict else content


def _require_few(body: bytes, signs: bytes, most: int, what: str) -> None:
    if sum(body.count(sign) for sign in signs) > most:
        raise _too_many(f"the body holds more than {most} {what}; split it")


def require_shallow(document: Any) -> None:
    """Refuse `document` if it is nested deeper than `MAX_DEPTH`.

    Raises:
        InvalidRequestError: it is (400).
    """
    level: Sequence[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise _too_deep()


def table_of_json(document: Any) -> Table:
    """The rows in a parsed `document`.

    Raises:
        InvalidRequestError: it has none or several of `FORMATS`, or holds too many rows.
    """
    if type(document) is not dict:
        raise _no_table(f"{_ONE_FORMAT}, not {shown(document)}")
    keys = _FORMATS & document.keys()
    if len(keys) != 1:
        names = " and ".join(sorted(keys)) or "none of them"
        raise _no_table(f"{_ONE_FORMAT}; it has {names}")
    (key,) = keys
    content = document[key]
    if key == "dataframe_split":
        return _from_split(content)
    if type(content) is list:
        return Table(_bounded(content), _NO_OBJECT)
    if key == "dataframe_records":
        raise _no_table(f"{key} must be a list of records, not {shown(content)}")
    if type(content) is dict:
        return Table(_from_columns(content), _NO_OBJECT)
    raise _no_table(
        f"{key} must be a list of records or an object of columns, not {shown(content)}"
    )


def table_of_csv(body: bytes, spec: DataSpec) -> Table:
    """The rows in `body`, without the target of `spec` and columns that have no name.

    What is no number in a numeric column stays text.

    Raises:
        InvalidRequestError: it is no CSV in UTF-8 (400), or is no table or holds too many rows
            (422).
    """
    if max(body.count(b"\n"), body.count(b"\r")) > MAX_LINES:
        raise _too_many(f"the body holds more than {MAX_LINES} lines; split it")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None
    records = None
    try:
        records = CsvRecords(_lines(text), spec.input_names)
        data = list(islice(records, MAX_ROWS + 1))
    except csv.Error as error:
        line = records.line if records else 1
        raise InvalidRequestError(
            400, f"The body is not valid CSV: {error} (line {line})."
        ) from None
    header = records.header
    if not header:
        raise InvalidRequestError(400, "The body is empty; send CSV with a header row.")
    if not set(spec.input_names) & set(header):
        expected = ", ".join(spec.input_names)
        given = ", ".join(map(shown, header[:_SHOWN_NAMES]))
        raise _no_table(f"the first line must name the columns ({expected}), and is {given}")
    width = len(header)
    read, other = cell_readers(spec), text_reader()
    # A file of training data holds the truth as well, which is none of the model's business.
    places = [at for at, name in enumerate(header) if name not in ("", spec.target.name)]
    names = [header[at] for at in places]
    _require_different(names)
    columns = list(zip(names, places, [read.get(name, other) for name in names], strict=True))
    rows = [
        {name: value_of(cells[at]) for name, at, value_of in columns}
        if len(cells) == width
        else cells
        for cells in _bounded(data)
    ]
    return Table(rows, ValidationIssue(f"must be a row of {width} cells", "misshapen row"))


_NO_OBJECT = ValidationIssue("must be an object with one entry per column", "misshapen row")


def _from_columns(columns: Mapping[str, Any]) -> list[Any]:
    if not any(type(values) is list for values in columns.values()):
        return [columns] if columns else []
    lengths = {len(values) if type(values) is list else None for values in columns.values()}
    if len(lengths) != 1:
        raise _no_table("the columns must be lists of one length")
    names = list(columns)
    _bounded(columns[names[0]])
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


_SPLIT_KEYS = frozenset({"columns", "data", "index"})


def _from_split(content: Any) -> Table:
    if (
        type(content) is not dict
        or not {"columns", "data"} <= content.keys()
        or not content.keys() <= _SPLIT_KEYS
    ):
        raise _no_table("dataframe_split must be an object with columns, data and perhaps index")
    names, data = content["columns"], content["data"]
    if type(names) is list and len(names) > MAX_COLUMNS:
        raise _no_table(f"dataframe_split may have {MAX_COLUMNS} columns, not {len(names)}")
    if type(names) is not list or not all(type(name) is str for name in names):
        raise _no_table("the columns of dataframe_split must be a list of names")
    _require_different(names)
    if type(data) is not list:
        raise _no_table("the data of dataframe_split must be a list of rows")
    index = content.get("index")
    if index is not None and (type(index) is not list or len(index) != len(data)):
        raise _no_table("the index of dataframe_split must be a list with one entry per row")
    width = len(names)
    rows = [
        dict(zip(names, row, strict=True))
        if type(row) is list and len(row) == width
        # A record would be taken for a row that is no list at all.
        else (None if type(row) is dict else row)
        for row in _bounded(data)
    ]
    return Table(rows, ValidationIssue(f"must be a list of {width} values", "misshapen row"))


def _require_different(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise _no_table("the names of the columns must be different from each other")


def _bounded(rows: list[Any]) -> list[Any]:
    # Before anything is built from the rows: a small body can hold millions of empty ones.
    if len(rows) > MAX_ROWS:
        raise _too_many(f"the request holds more than {MAX_ROWS} rows; split it")
    return rows


def _too_many(message: str) -> InvalidRequestError:
    return invalid(ValidationIssue(message, "too many rows"))


def _no_table(message: str) -> InvalidRequestError:
    return invalid(ValidationIssue(message, "no table"))


def _document_beyond_the_standard(body: bytes) -> Any:
    if not body:
        raise InvalidRequestError(400, "The body is empty; send rows as JSON.")
    text = ""
    try:
        text = body.decode("utf-8-sig")
        return json.loads(text, parse_constant=_CONSTANTS.__getitem__, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None
    except json.JSONDecodeError as error:
        near = shown(text[error.pos : error.pos + _NEAR]) if error.pos < len(text) else "its end"
        raise InvalidRequestError(
            400,
            f"The body is not valid JSON: {error.msg[0].lower()}{error.msg[1:]} (line "
            f"{error.lineno}, column {error.colno}, at {near}).",
        ) from None
    except RecursionError:
        raise _too_deep() from None


_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}


def _integer(digits: str) -> float:
    # As orjson reads it: what needs more than 64 bits is no exact integer.
    return int(digits) if len(digits) < _EXACT_DIGITS else float(digits)


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(
        400, f"The body is nested deeper than {MAX_DEPTH} levels.", reasons=["too deep"]
    )


def _not_utf8(error: UnicodeDecodeError) -> InvalidRequestError:
    return InvalidRequestError(400, f"The body is not UTF-8: {error.reason} (byte {error.start}).")


def _lines(text: str) -> Iterator[str]:
    # A line may end in any way, but is left as it is: within quotes it belongs to the cell.
    for line in io.StringIO(text, newline=""):
        if len(line) > MAX_LINE:
            raise csv.Error(f"a line has more than {MAX_LINE} characters")
        yield line
