"""From a request's body to rows that the model may see, or to the reasons why not.

The body follows MLflow's scoring protocol: ``inputs`` or ``instances`` (a list of records, or a
mapping of columns), ``dataframe_split`` or ``dataframe_records``. Every rule about a column comes
from the data spec. A request is taken as a whole or refused as a whole; a column that the spec does
not know is refused too, since it is a misspelt name more often than surplus.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import orjson

from mlschool_dagster.modeling.spec import CategoricalColumn, Column, DataSpec, NumericColumn
from mlschool_dagster.values import InputValue

MAX_ROWS = 10_000
MAX_DEPTH = 32
MAX_FAULTS = 100
MAX_TEXT = 256
FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")

Row = dict[str, InputValue]
Fault = dict[str, Any]
Check = Callable[[Any], str | None]


class InvalidRequestError(Exception):
    """A request that is refused, with the HTTP status to answer it.

    ``faults`` are mappings with ``reason`` and, where they apply, ``row`` and ``column``; the
    first `MAX_FAULTS` are kept.
    """

    def __init__(self, status: int, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.faults = list(faults)[:MAX_FAULTS]


class Validator:
    """The rules of one data spec, laid out once so that a valid row costs microseconds."""

    def __init__(self, spec: DataSpec) -> None:
        self._checks: list[tuple[str, Check]] = [(c.name, _check_of(c)) for c in spec.columns]
        self._names = frozenset(spec.input_names)

    def rows(self, body: bytes) -> list[Row]:
        """The rows in `body`.

        Raises:
            InvalidRequestError: 400 if `body` is malformed or nested too deep, 422 if it is
                well-formed but not input for this spec.
        """
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._explain_malformed(body) from None
        try:
            return self._valid_rows(document)
        except InvalidRequestError:
            if _deeper_than(document, MAX_DEPTH):
                raise _too_deep() from None
            raise

    def _valid_rows(self, document: Any) -> list[Row]:
        rows = _records(document)
        if not rows:
            raise _invalid("the request holds no rows")
        faults: list[Fault] = []
        for number, row in enumerate(rows):
            faults.extend(islice(self._faults(number, row), MAX_FAULTS))
            if len(faults) >= MAX_FAULTS:
                break
        if faults:
            raise InvalidRequestError(422, "The input is not valid; see the faults.", faults)
        return rows

    def _faults(self, number: int, row: Any) -> Iterator[Fault]:
        if type(row) is not dict:
            yield {"row": number, "reason": "must be an object with one entry per column"}
            return
        for name, check in self._checks:
            if name not in row:
                yield {"row": number, "column": name, "reason": "is missing"}
            elif (reason := check(row[name])) is not None:
                yield {"row": number, "column": name, "reason": reason}
        for name in row:
            if name not in self._names:
                yield {"row": number, "column": _printable(name), "reason": "is no known column"}

    def _explain_malformed(self, body: bytes) -> InvalidRequestError:
        # NaN and infinity are no JSON, yet common clients write them: say which field has them.
        try:
            self._valid_rows(json.loads(body))
        except InvalidRequestError as error:
            if any(fault["reason"] == _NOT_FINITE for fault in error.faults):
                return error
        except RecursionError:
            return _too_deep()
        except ValueError:
            pass
        return InvalidRequestError(400, "The body is not valid JSON.")


_NOT_FINITE = "must be a finite number"


def _check_of(column: Column) -> Check:
    check = _numeric(column) if isinstance(column, NumericColumn) else _categorical(column)
    if column.nullable:
        return lambda value: None if value is None else check(value)
    return lambda value: "may not be null" if value is None else check(value)


def _numeric(column: NumericColumn) -> Check:
    minimum, maximum = column.minimum, column.maximum
    unit = f" {column.unit}" if column.unit else ""

    def check(value: Any) -> str | None:
        # By exact type, because bool is a subclass of int.
        if type(value) is not float and type(value) is not int:
            return "must be a number"
        if minimum <= value <= maximum:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return _NOT_FINITE
        return f"must be between {minimum:g} and {maximum:g}{unit}"

    return check


def _categorical(column: CategoricalColumn) -> Check:
    categories = frozenset(column.categories)

    def check(value: Any) -> str | None:
        if type(value) is not str:
            return "must be a string"
        if value in categories:
            return None
        if not column.allow_unknown:
            return f"must be one of {', '.join(column.categories)}"
        return f"must have at most {MAX_TEXT} characters" if len(value) > MAX_TEXT else None

    return check


def _records(document: Any) -> list[Any]:
    if type(document) is not dict or len(document) != 1:
        raise _invalid(f"the body must be an object with exactly one of {', '.join(FORMATS)}")
    ((key, content),) = document.items()
    if key in ("inputs", "instances") and type(content) is dict:
        return _from_columns(content)
    if key in ("inputs", "instances", "dataframe_records"):
        if type(content) is not list:
            raise _invalid(f"{key} must be a list of records")
        return _bounded(content)
    if key == "dataframe_split":
        return _from_split(content)
    raise _invalid(f"the body must have one of {', '.join(FORMATS)}")


def _from_columns(columns: dict[str, Any]) -> list[Any]:
    if not any(type(values) is list for values in columns.values()):
        return [columns] if columns else []
    lengths = {len(values) if type(values) is list else None for values in columns.values()}
    if len(lengths) != 1:
        raise _invalid("the columns must be lists of one length")
    names = list(columns)
    _bounded(columns[names[0]])
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _from_split(content: Any) -> list[Any]:
    if type(content) is not dict or not {"columns", "data"} <= content.keys() <= {
        "columns",
        "data",
        "index",
    }:
        raise _invalid("dataframe_split must be an object with columns, data and perhaps index")
    names, data = content["columns"], content["data"]
    if type(names) is not list or not all(type(name) is str for name in names):
        raise _invalid("the columns of dataframe_split must be a list of names")
    if len(set(names)) != len(names):
        raise _invalid("the columns of dataframe_split must be different from each other")
    if type(data) is not list:
        raise _invalid("the data of dataframe_split must be a list of rows")
    for number, row in enumerate(_bounded(data)):
        if type(row) is not list or len(row) != len(names):
            raise _invalid("must be a list with one value per column", {"row": number})
    return [dict(zip(names, row, strict=True)) for row in data]


def _bounded(rows: list[Any]) -> list[Any]:
    # Before anything is built from the rows: a small body can hold millions of empty ones.
    if len(rows) > MAX_ROWS:
        raise _invalid(f"the request holds more than {MAX_ROWS} rows; split it")
    return rows


def _invalid(reason: str, where: Fault | None = None) -> InvalidRequestError:
    return InvalidRequestError(
        422, "The input is not valid; see the faults.", [{**(where or {}), "reason": reason}]
    )


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(400, f"The body is nested deeper than {MAX_DEPTH} levels.")


def _deeper_than(document: Any, limit: int) -> bool:
    level: Sequence[Any] = [document]
    for _ in range(limit):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def _printable(name: str) -> str:
    return name[:MAX_TEXT].encode("utf-8", "replace").decode()
