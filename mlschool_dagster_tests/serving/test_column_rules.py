"""A rule says of a whole column what it says of each of its values."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import CategoricalColumn, NumericColumn
from mlschool_dagster.serving.column_rules import MAX_TEXT, Rule, rules_of
from mlschool_dagster_tests.serving.tiny_model import SPEC

MASS = NumericColumn("mass", "Body mass", 0.0, 10.0, unit="kg")
COLOUR = CategoricalColumn("colour", "Colour", ("black", "white"))
COLUMNS = [
    replace(column, nullable=nullable) for column in (MASS, COLOUR) for nullable in (False, True)
] + [replace(COLOUR, nullable=nullable, allow_unknown=True) for nullable in (False, True)]
RULES = [rules_of(replace(SPEC, columns=(column,)))[column.name] for column in COLUMNS]

VALID: dict[str, st.SearchStrategy[object]] = {
    "mass": st.integers(0, 10) | st.floats(0, 10),
    "colour": st.sampled_from(COLOUR.categories),
}
ODD: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["nan", "x" * MAX_TEXT, "x" * (MAX_TEXT + 1), "\0", 10**400, -(10**400)])
    | st.lists(st.none(), max_size=1)
    | st.dictionaries(st.text(max_size=1), st.none(), max_size=1)
)


@pytest.mark.parametrize(("column", "rule"), zip(COLUMNS, RULES, strict=True))
@given(data=st.data())
def test_a_column_fits_if_no_issue_is_in_its_values(
    column: NumericColumn | CategoricalColumn, rule: Rule, data: st.DataObject
) -> None:
    values: list[object] = data.draw(st.lists(VALID[column.name], max_size=8))
    values += data.draw(st.lists(ODD, min_size=0 if values else 1, max_size=2))
    values = data.draw(st.permutations(values))
    assert rule.fits(values) == all(rule.issue(value) is None for value in values)


def test_not_a_number_is_detected_wherever_it_stands() -> None:
    for position in range(3):
        values = [1.0, 2.0, 3.0]
        values[position] = math.nan
        assert not RULES[0].fits(values)
