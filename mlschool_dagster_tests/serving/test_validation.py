"""A request is taken as a whole, or refused with reasons that name row and column."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.modeling.spec import CategoricalColumn
from mlschool_dagster.serving.validation import (
    MAX_FAULTS,
    MAX_ROWS,
    MAX_TEXT,
    InvalidRequestError,
    Validator,
)
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC

VALIDATOR = Validator(SPEC)
OTHER: dict[str, Any] = {**ROW, "island": "Dream", "sex": None, "culmen_length_mm": None}


def rows_of(document: object) -> list[dict[str, Any]]:
    return VALIDATOR.rows(json.dumps(document).encode())


def refusal_of(body: bytes | object, validator: Validator = VALIDATOR) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        validator.rows(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def fault_of(**changes: Any) -> tuple[int, list[dict[str, Any]]]:
    error = refusal_of({"inputs": [ROW, {**ROW, **changes}]})
    return error.status, error.faults


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [ROW, OTHER]},
        {"instances": [ROW, OTHER]},
        {"dataframe_records": [ROW, OTHER]},
        {"inputs": {name: [ROW[name], OTHER[name]] for name in ROW}},
        {"dataframe_split": {"columns": list(ROW), "data": [[*ROW.values()], [*OTHER.values()]]}},
        {
            "dataframe_split": {
                "index": [7, 8],
                "columns": [*reversed(ROW)],
                "data": [[*reversed(ROW.values())], [OTHER[name] for name in reversed(ROW)]],
            }
        },
    ],
)
def test_every_form_of_the_protocol_holds_the_same_rows(document: object) -> None:
    assert rows_of(document) == [ROW, OTHER]


def test_a_mapping_without_lists_is_one_row() -> None:
    assert rows_of({"inputs": ROW}) == [ROW]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("body_mass_g", 999.9, "must be between 1000 and 10000 g"),
        ("body_mass_g", -5800, "must be between 1000 and 10000 g"),
        ("body_mass_g", 10**30, "must be between 1000 and 10000 g"),
        ("body_mass_g", "5800", "must be a number"),
        ("body_mass_g", True, "must be a number"),
        ("body_mass_g", [5800], "must be a number"),
        ("body_mass_g", float("nan"), "must be a finite number"),
        ("body_mass_g", float("inf"), "must be a finite number"),
        ("body_mass_g", float("-inf"), "must be a finite number"),
        ("island", "Anvers", "must be one of Biscoe, Dream, Torgersen"),
        ("island", 3, "must be a string"),
        ("island", None, "may not be null"),
        ("sex", {"is": "MALE"}, "must be a string"),
        ("wings", 2, "is no known column"),
    ],
)
def test_a_wrong_value_is_named_by_row_column_and_reason(
    column: str, value: object, reason: str
) -> None:
    assert fault_of(**{column: value}) == (422, [{"row": 1, "column": column, "reason": reason}])


@pytest.mark.parametrize("column", list(ROW))
def test_a_missing_column_is_named(column: str) -> None:
    row = {name: value for name, value in ROW.items() if name != column}
    assert refusal_of({"inputs": [row]}).faults == [
        {"row": 0, "column": column, "reason": "is missing"}
    ]


def test_null_is_accepted_exactly_where_the_data_has_missing_values() -> None:
    for column in SPEC.columns:
        if column.nullable:
            assert rows_of({"inputs": [{**ROW, column.name: None}]})[0][column.name] is None
        else:
            assert fault_of(**{column.name: None})[0] == 422


def test_the_ends_of_a_range_are_inside() -> None:
    for column in SPEC.numeric:
        rows_of({"inputs": [{**ROW, column.name: column.minimum}]})
        rows_of({"inputs": [{**ROW, column.name: column.maximum}]})


def test_the_spec_can_allow_unknown_categories() -> None:
    columns = tuple(
        replace(c, allow_unknown=True) if isinstance(c, CategoricalColumn) else c
        for c in SPEC.columns
    )
    validator = Validator(replace(SPEC, columns=columns))
    row = {**ROW, "island": "Anvers"}
    assert validator.rows(json.dumps({"inputs": [row]}).encode()) == [row]
    long = refusal_of({"inputs": [{**ROW, "island": "x" * (MAX_TEXT + 1)}]}, validator)
    assert long.faults[0]["column"] == "island"


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        "inputs",
        {"inputs": []},
        {"inputs": {}},
        {"inputs": None},
        {"inputs": [1]},
        {"inputs": [[1, 2]]},
        {"inputs": {"island": ["Biscoe"], "sex": ["MALE", "MALE"]}},
        {"inputs": {"island": ["Biscoe"], "sex": "MALE"}},
        {"inputs": [ROW], "instances": [ROW]},
        {"rows": [ROW]},
        {"dataframe_records": {"island": ["Biscoe"]}},
        {"dataframe_split": {"columns": list(ROW)}},
        {"dataframe_split": {"columns": [1], "data": [[1]]}},
        {"dataframe_split": {"columns": ["sex", "sex"], "data": [["MALE", "MALE"]]}},
        {"dataframe_split": {"columns": ["sex"], "data": [["MALE", "MALE"]]}},
        {"dataframe_split": {"columns": ["sex"], "data": "MALE"}},
        {"dataframe_split": {"columns": list(ROW), "data": []}},
        {"inputs": [ROW] * (MAX_ROWS + 1)},
        {"inputs": {name: [value] * (MAX_ROWS + 1) for name, value in ROW.items()}},
        {"dataframe_split": {"columns": ["sex"], "data": [["MALE"]] * (MAX_ROWS + 1)}},
    ],
)
def test_what_is_json_but_no_input_is_refused_with_a_reason(document: object) -> None:
    error = refusal_of(document)
    assert error.status == 422
    assert error.faults[0]["reason"]


@pytest.mark.parametrize("body", [b"", b"{", b"inputs", b"\xff\xfe", b'{"inputs": [}', b"\x00"])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    assert refusal_of(body).status == 400


@pytest.mark.parametrize("depth", [50, 1_000, 100_000])
def test_what_is_nested_too_deep_is_malformed(depth: int) -> None:
    assert refusal_of(b'{"inputs":' + b"[" * depth + b"]" * depth + b"}").status == 400


def test_the_list_of_faults_is_bounded() -> None:
    assert len(refusal_of({"inputs": [{}] * MAX_ROWS}).faults) == MAX_FAULTS
    assert len(refusal_of({"inputs": [{str(i): i for i in range(5000)}]}).faults) == MAX_FAULTS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CELLS = st.sampled_from([*ROW.values(), "Dream"]) | JSON
RECORDS = st.dictionaries(st.sampled_from([*ROW, "wings"]), CELLS) | st.builds(
    lambda changes: {**ROW, **changes}, st.dictionaries(st.sampled_from(list(ROW)), CELLS)
)


@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_whatever_is_let_through_keeps_every_rule_of_the_spec(
    records: list[dict[str, Any]],
) -> None:
    try:
        rows = rows_of({"inputs": records})
    except InvalidRequestError as error:
        assert error.status in (400, 422)
        assert all(fault.get("row", 0) < len(records) for fault in error.faults)
        return
    assert rows
    for row in rows:
        assert row.keys() == set(SPEC.input_names)
        for column in SPEC.numeric:
            value = row[column.name]
            assert value is None or column.minimum <= value <= column.maximum
            assert not isinstance(value, bool)
        for category in SPEC.categorical:
            allowed = {*category.categories, *([None] if category.nullable else [])}
            assert row[category.name] in allowed


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda d: json.dumps(d).encode()))
def test_any_body_is_rows_or_a_refusal(body: bytes) -> None:
    try:
        assert VALIDATOR.rows(body)
    except InvalidRequestError as error:
        assert error.status in (400, 422)
        json.dumps(error.faults).encode()
