"""From a request's body to rows that the model may see, or to the reasons why not.

Every rule about a column comes from the data spec. A request is taken as a whole or refused as a
whole, unless its caller asks for the valid rows alone. A column that the spec does not know is
refused too, since it is a misspelt name more often than surplus.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from mlschool_dagster.modeling.compiled import values_getter
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.serving.faults import (
    INVALID,
    MAX_FAULTS,
    Fault,
    Finding,
    InvalidRequestError,
    invalid,
)
from mlschool_dagster.serving.formats import (
    Table,
    require_few_containers,
    table_of_csv,
    table_of_json,
)
from mlschool_dagster.serving.rules import MAX_TEXT, NOT_FINITE, rules_of
from mlschool_dagster.values import InputValue

__all__ = ["Accepted", "Fault", "InvalidRequestError", "Row", "Validator"]

MAX_DEPTH = 32
FEW_ROWS = 4
"""Up to so many rows are looked at one by one sooner than column by column."""

Row = dict[str, InputValue]


@dataclass(slots=True)
class Accepted:
    """The rows of a request that the model may see.

    ``rows`` are in the order of the request, ``positions`` are their places among the ``total``
    rows of it. ``faults`` tell what is wrong with each row left out: everything for the first ones,
    one fault a row once `MAX_FAULTS` are told. ``reasons`` names what to count them under.
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
        self._numeric = frozenset(column.name for column in spec.numeric)
        self._values = values_getter(spec.input_names)
        self._missing = {name: Finding("is missing", f"{name}: is missing") for name in self._rules}

    def accept(self, body: bytes, media_type: str, partial: bool = False) -> Accepted:
        """The valid rows in `body`, which is ``application/json`` or ``text/csv``.

        Unless `partial`, all rows must be valid; one must be in any case.

        Raises:
            InvalidRequestError: 400 if `body` is malformed or nested too deep, 422 if it is
                well-formed but not input for this spec.
        """
        if media_type == "text/csv":
            return self._judge(table_of_csv(body, self._numeric), partial)
        require_few_containers(body)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._explain_malformed(body) from None
        try:
            accepted = self._judge(table_of_json(document), partial)
        except InvalidRequestError:
            _require_shallow(document)
            raise
        if accepted.faults:
            _require_shallow(document)
        return accepted

    def _judge(self, table: Table, partial: bool) -> Accepted:
        rows = table.rows
        total = len(rows)
        if not total:
            raise invalid(Finding("the request holds no rows", "no rows"))
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
        """What `table` holds of valid rows, looked at one by one to say what is wrong."""
        valid: list[Row] = []
        positions: list[int] = []
        faults: list[Fault] = []
        reasons: dict[str, None] = {}
        for position, row in enumerate(table.rows):
            found = list(islice(self._findings(row, table.misshapen), MAX_FAULTS))
            if not found:
                valid.append(row)
                positions.append(position)
                continue
            for where, finding in found[: max(1, MAX_FAULTS - len(faults))]:
                faults.append({"row": position, **where, "reason": finding.told})
                reasons[finding.counted] = None
            if not partial and len(faults) >= MAX_FAULTS:
                break
        if faults and not (partial and valid):
            raise InvalidRequestError(422, INVALID, faults, reasons)
        return Accepted(valid, positions, len(table.rows), faults, list(reasons))

    def _findings(
        self, row: Any, misshapen: Finding
    ) -> Iterator[tuple[Mapping[str, str], Finding]]:
        if type(row) is not dict:
            yield {}, misshapen
            return
        for name, rule in self._rules.items():
            finding = rule.finding(row[name]) if name in row else self._missing[name]
            if finding is not None:
                yield {"column": name}, finding
        for name in row:
            if name not in self._rules:
                yield {"column": _printable(name)}, _UNKNOWN_COLUMN

    def _explain_malformed(self, body: bytes) -> InvalidRequestError:
        # NaN and infinity are no JSON, yet common clients write them: say which field has them.
        try:
            self._judge(table_of_json(json.loads(body)), partial=False)
        except InvalidRequestError as error:
            if any(fault["reason"] == NOT_FINITE for fault in error.faults):
                return error
        except RecursionError:
            return _too_deep()
        except ValueError:
            pass
        return InvalidRequestError(400, "The body is not valid JSON.")


_UNKNOWN_COLUMN = Finding("is no known column", "unknown column")


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(
        400, f"The body is nested deeper than {MAX_DEPTH} levels.", reasons=["too deep"]
    )


def _require_shallow(document: Any) -> None:
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
        raise _too_deep() from None


def _printable(name: str) -> str:
    return name[:MAX_TEXT].encode("utf-8", "replace").decode()
