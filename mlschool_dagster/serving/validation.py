"""Validate a request's body: to rows that the model may see, or to the reasons why not.

Every rule about a column comes from the data spec. A request is taken as a whole or refused as a
whole, unless its caller asks for the valid rows alone. A nullable column that a row does not have
is null. A column that the spec does not know is left out of a row that has all others; where one
is missing it is refused, since it may be a misspelt name. A text that is no valid value as it is is
read as a cell of CSV, so that a row means the same in JSON, in CSV and to a batch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mlschool_dagster.dataset.cells import Reader, cell_readers
from mlschool_dagster.dataset.spec import CategoricalColumn, Column, DataSpec, InputValue
from mlschool_dagster.modeling.predictor import values_getter
from mlschool_dagster.serving.column_rules import MAX_TEXT, rules_of
from mlschool_dagster.serving.parsing import (
    Table,
    document_of,
    require_shallow,
    table_of_csv,
    table_of_json,
)
from mlschool_dagster.serving.validation_errors import (
    INVALID,
    MAX_FAULTS,
    Fault,
    InvalidRequestError,
    ValidationIssue,
    invalid,
)

__all__ = ["Accepted", "Fault", "InvalidRequestError", "Row", "Validator", "value_readers"]

FEW_ROWS = 4
"""Up to so many rows are checked one by one faster than column by column."""

Row = dict[str, InputValue]


@dataclass(slots=True)
class Accepted:
    """The rows of a request that the model may see.

    ``rows`` are in the order of the request, ``positions`` are their places among the ``total``
    rows of it. ``faults`` list the issues of each row left out: everything for the first ones,
    one fault a row once there are `MAX_FAULTS`. ``reasons`` names what to count them under.
    """

    rows: list[Row]
    positions: Sequence[int]
    total: int
    faults: list[Fault]
    reasons: Sequence[str]


class Validator:
    """The rules of one data spec, laid out once so that a valid row costs microseconds."""

    def __init__(self, spec: DataSpec) -> None:
        self._rules = rules_of(spec)
        self._fits = [rule.fits for rule in self._rules.values()]
        self._spec = spec
        self._values = values_getter(spec.input_names)
        self._nullable = {column.name for column in spec.columns if column.nullable}
        self._readers = value_readers(spec)
        # A row of training data holds the truth as well.
        self._known = {*spec.input_names, spec.target.name}

    def accept(self, body: bytes, media_type: str, partial: bool = False) -> Accepted:
        """The valid rows in `body`, which is ``application/json`` or ``text/csv``.

        Unless `partial`, all rows must be valid; one must be in any case.

        Raises:
            InvalidRequestError: 400 if `body` is malformed or nested too deep, 422 if it is
                well-formed but not input for this spec.
        """
        if media_type == "text/csv":
            return self._judge(table_of_csv(body, self._spec), partial)
        document = document_of(body, len(self._rules))
        try:
            accepted = self._judge(table_of_json(document), partial)
        except InvalidRequestError:
            require_shallow(document)
            raise
        if accepted.faults:
            require_shallow(document)
        return accepted

    def accept_rows(self, rows: list[Any]) -> Accepted:
        """`rows`, all of which must be valid.

        Raises:
            InvalidRequestError: 422 if one is not, or there is none.
        """
        return self._judge(Table(rows, ValidationIssue("is no row", "no row")), partial=False)

    def _judge(self, table: Table, partial: bool) -> Accepted:
        rows = table.rows
        total = len(rows)
        if not total:
            raise invalid(ValidationIssue("the request holds no rows", "no rows"))
        if total > FEW_ROWS and self._are_valid(rows):
            return Accepted(rows, range(total), total, [], ())
        return self._sort_out(table, partial)

    def _are_valid(self, rows: list[Any]) -> bool:
        if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(self._rules)}:
            return False
        try:
            columns = zip(*map(self._values, rows), strict=True)
        except KeyError:
            return False
        return all(fits(column) for fits, column in zip(self._fits, columns, strict=True))

    def _sort_out(self, table: Table, partial: bool) -> Accepted:
        """Valid rows of `table`, checked one by one to collect the faults of the others."""
        valid: list[Row] = []
        positions: list[int] = []
        faults: list[Fault] = []
        reasons: dict[str, None] = {}
        for position, given in enumerate(table.rows):
            row = self._completed(given)
            issues = self._issues(row, row, table.misshapen)
            if issues and type(row) is dict:
                values = self._read(row)
                issues = self._issues(row, values, table.misshapen)
                row = row if issues else values
            if not issues:
                valid.append(row)
                positions.append(position)
                continue
            for fault, reason in issues[: max(1, MAX_FAULTS - len(faults))]:
                faults.append({"row": position, **fault})
                reasons[reason] = None
            if not partial and len(faults) >= MAX_FAULTS:
                break
        if faults and not (partial and valid):
            raise InvalidRequestError(422, INVALID, faults, reasons)
        return Accepted(valid, positions, len(table.rows), faults, list(reasons))

    def _completed(self, row: Any) -> Any:
        """`row` with exactly the spec's columns if it can be, as it is otherwise."""
        if type(row) is not dict or row.keys() == self._rules.keys():
            return row
        missing = self._rules.keys() - row.keys()
        if not missing <= self._nullable or (missing and not row.keys() <= self._known):
            return row
        return {name: row.get(name) for name in self._rules}

    def _read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the spec's columns in `row`, read as cells."""
        return {name: read(row[name]) for name, read in self._readers.items() if name in row}

    def _issues(self, row: Any, values: Any, misshapen: ValidationIssue) -> list[tuple[Fault, str]]:
        """Faults of `row`, and the reasons to count: the first `MAX_FAULTS`.

        Its `values` are judged, and its names.
        """
        if type(row) is not dict:
            return [({"reason": misshapen.about(row)}, misshapen.reason)]
        issues: list[tuple[Fault, str]] = []
        missing = None
        for name, rule in self._rules.items():
            if name in row:
                issue = rule.issue(values[name])
                if issue is not None:
                    fault = {"column": name, "reason": issue.about(values[name])}
                    issues.append((fault, issue.reason))
                continue
            missing = missing or name
            if name not in self._nullable:
                issues.append(({"column": name, "reason": "is missing"}, f"{name}: is missing"))
        if missing is not None:
            reason = f"is no known column, while {missing} is missing"
            unknown = islice((name for name in row if name not in self._known), MAX_FAULTS)
            issues += (
                ({"column": _printable(name), "reason": reason}, "unknown column")
                for name in unknown
            )
        return issues[:MAX_FAULTS]


def value_readers(spec: DataSpec) -> dict[str, Callable[[Any], Any]]:
    """For each column a function that reads what is none of its values as a cell of CSV."""
    read = cell_readers(spec)
    return {column.name: _reader_of(column, read[column.name]) for column in spec.columns}


def _reader_of(column: Column, read: Reader) -> Callable[[Any], Any]:
    """A function from a value that is none of `column`'s to what it may have been meant as."""
    # Categories that are numbers are numbers again in pandas, and floats where one is missing.
    categories = column.categories if isinstance(column, CategoricalColumn) else ()
    codes = {float(text): text for text in categories if _DIGITS.fullmatch(text)}

    def read_value(value: Any) -> Any:
        if type(value) is str:
            return read(value)
        return codes.get(value, value) if type(value) in (int, float) else value

    return read_value


_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,14}")


def _printable(name: str) -> str:
    return name[:MAX_TEXT].encode("utf-8", "replace").decode()
