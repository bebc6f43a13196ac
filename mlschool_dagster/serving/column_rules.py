"""Rules of the data spec for each column of a request.

A rule judges twice: `fits` takes a whole column in a few passes that run in C, since nearly every
request is valid; `issue` takes one value and says what is wrong with it. Both say the same.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mlschool_dagster.dataset.cells import text_reader
from mlschool_dagster.dataset.spec import (
    LONGEST_TEXT,
    CategoricalColumn,
    Column,
    DataSpec,
    NumericColumn,
)
from mlschool_dagster.errors import listed
from mlschool_dagster.serving.validation_errors import ValidationIssue

MAX_TEXT = LONGEST_TEXT
NOT_FINITE = "must be a finite number"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NULL = type(None)
# By exact type, because bool is a subclass of int.
_NUMBERS = frozenset({int, float})
_NUMBERS_OR_NULL = _NUMBERS | {_NULL}
_TEXTS = frozenset({str})
_TEXTS_OR_NULL = _TEXTS | {_NULL}


class Rule(Protocol):
    """Rule for the values of one column."""

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether all of `values`, of which there is at least one, are valid."""

    def issue(self, value: Any) -> ValidationIssue | None:
        """Issue of `value`; None if it is valid."""


def rules_of(spec: DataSpec) -> Mapping[str, Rule]:
    """The rule of each column, in the spec's order."""
    return {column.name: _rule_of(column) for column in spec.columns}


def _rule_of(column: Column) -> Rule:
    if isinstance(column, NumericColumn):
        return NumericRule(column)
    return OpenRule(column) if column.allow_unknown else CategoricalRule(column)


class NumericRule:
    """A finite number in the column's closed range."""

    def __init__(self, column: NumericColumn) -> None:
        self._minimum, self._maximum = column.minimum, column.maximum
        self._nullable = column.nullable
        unit = f" {column.unit}" if column.unit else ""
        name = column.name
        self._null = ValidationIssue("may not be null", f"{name}: may not be null")
        self._type = ValidationIssue("must be a number", f"{name}: is no number")
        self._not_finite = ValidationIssue(NOT_FINITE, f"{name}: is not finite")
        self._range = ValidationIssue(
            f"must be between {column.minimum:g} and {column.maximum:g}{unit}",
            f"{name}: is not in range",
        )

    def fits(self, values: Sequence[Any]) -> bool:
        """See `Rule.fits`."""
        types = set(map(type, values))
        if _NULL in types:
            if not (self._nullable and types <= _NUMBERS_OR_NULL):
                return False
            values = [value for value in values if value is not None]
            if not values:
                return True
        elif not types <= _NUMBERS:
            return False
        return (
            self._minimum <= min(values)
            and max(values) <= self._maximum
            # Extremes overlook NaN; a sum does not.
            and math.isfinite(sum(values))
        )

    def issue(self, value: Any) -> ValidationIssue | None:
        """See `Rule.issue`."""
        if value is None:
            return None if self._nullable else self._null
        if type(value) not in _NUMBERS:
            return self._type
        if self._minimum <= value <= self._maximum:
            return None
        is_infinite_or_nan = type(value) is float and not math.isfinite(value)
        return self._not_finite if is_infinite_or_nan else self._range


class CategoricalRule:
    """One of the column's categories."""

    def __init__(self, column: CategoricalColumn) -> None:
        self._valid = frozenset([*column.categories, *([None] if column.nullable else [])])
        name = column.name
        self._null = ValidationIssue("may not be null", f"{name}: may not be null")
        self._type = ValidationIssue("must be a string", f"{name}: is no string")
        self._unknown = ValidationIssue(
            f"must be one of {listed(column.categories)}", f"{name}: is no known category"
        )

    def fits(self, values: Sequence[Any]) -> bool:
        """See `Rule.fits`."""
        try:
            return self._valid.issuperset(values)
        except TypeError:
            # A list or an object, which is not hashable.
            return False

    def issue(self, value: Any) -> ValidationIssue | None:
        """See `Rule.issue`."""
        if value is not None and type(value) is not str:
            return self._type
        if value in self._valid:
            return None
        return self._null if value is None else self._unknown


class OpenRule:
    """A text that need not be one of the column's categories, but can be kept."""

    def __init__(self, column: CategoricalColumn) -> None:
        self._types = _TEXTS_OR_NULL if column.nullable else _TEXTS
        name = column.name
        self._null = ValidationIssue("may not be null", f"{name}: may not be null")
        self._type = ValidationIssue("must be a string", f"{name}: is no string")
        self._long = ValidationIssue(
            f"must have at most {MAX_TEXT} characters", f"{name}: is too long"
        )
        self._surrogate = ValidationIssue(
            "may not hold half a surrogate pair", f"{name}: holds half a surrogate pair"
        )
        self._read = text_reader(column.categories)
        self._unread = ValidationIssue(
            "may neither be a missing value nor have white space around it", f"{name}: is unread"
        )
        # PostgreSQL keeps no text with this character.
        self._nul = ValidationIssue("may not hold the character NUL", f"{name}: holds NUL")

    def fits(self, values: Sequence[Any]) -> bool:
        """See `Rule.fits`."""
        if not self._types.issuperset(map(type, values)):
            return False
        return all(value is None or self._text(value) is None for value in set(values))

    def issue(self, value: Any) -> ValidationIssue | None:
        """See `Rule.issue`."""
        if value is None:
            return None if _NULL in self._types else self._null
        return self._text(value) if type(value) is str else self._type

    def _text(self, value: str) -> ValidationIssue | None:
        if len(value) > MAX_TEXT:
            return self._long
        if self._read(value) != value:
            return self._unread
        if not value.isascii() and _LONE_SURROGATE.search(value) is not None:
            return self._surrogate
        return self._nul if "\0" in value else None
