"""A request is taken as a whole, or refused with reasons that name row and column."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mlschool_dagster.dataset.spec import CategoricalColumn, Column
from mlschool_dagster.serving.column_rules import MAX_TEXT
from mlschool_dagster.serving.parsing import MAX_ROWS
from mlschool_dagster.serving.validation import FEW_ROWS, InvalidRequestError, Validator
from mlschool_dagster.serving.validation_errors import MAX_FAULTS
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC

VALIDATOR = Validator(SPEC)
JSON_TYPE = "application/json"
OTHER: dict[str, Any] = {**ROW, "island": "Dream", "sex": None, "culmen_length_mm": None}


OPEN = Validator(
    replace(
        SPEC,
        columns=tuple(
            replace(c, allow_unknown=True) if isinstance(c, CategoricalColumn) else c
            for c in SPEC.columns
        ),
    )
)


def rows_of(document: object) -> list[dict[str, Any]]:
    body = json.dumps(document).encode()
    accepted = VALIDATOR.accept(body, JSON_TYPE)
    assert list(accepted.positions) == list(range(accepted.total))
    assert (accepted.faults, list(accepted.reasons)) == ([], [])
    return accepted.rows


def refusal_of(body: bytes | object, validator: Validator = VALIDATOR) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        validator.accept(body if isinstance(body, bytes) else json.dumps(body).encode(), JSON_TYPE)
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
        ("body_mass_g", 999.9, "must be between 1000 and 10000 g, not 999.9"),
        ("body_mass_g", -5800, "must be between 1000 and 10000 g, not -5800"),
        ("body_mass_g", 10**30, "must be between 1000 and 10000 g, not 1e+30"),
        ("body_mass_g", "5_800", "must be a number, not '5_800'"),
        ("body_mass_g", "5,800", "must be a number, not '5,800'"),
        ("body_mass_g", "580", "must be between 1000 and 10000 g, not 580.0"),
        ("body_mass_g", "inf", "must be a finite number, not inf"),
        ("body_mass_g", True, "must be a number, not true"),
        ("body_mass_g", [5800], "must be a number, not a list of 1"),
        ("body_mass_g", float("inf"), "must be a finite number, not inf"),
        ("body_mass_g", float("-inf"), "must be a finite number, not -inf"),
        ("island", "Anvers", "must be one of Biscoe, Dream, Torgersen, not 'Anvers'"),
        ("island", 3, "must be a string, not 3"),
        ("island", None, "may not be null"),
        ("island", "NA", "may not be null"),
        ("island", " anvers", "must be one of Biscoe, Dream, Torgersen, not 'anvers'"),
        ("island", float("nan"), "may not be null"),
        ("sex", float("inf"), "must be a string, not inf"),
        ("sex", {"is": "MALE"}, "must be a string, not an object of 1"),
        ("sex", "x" * 100, f"must be one of FEMALE, MALE, not '{'x' * 40}'..."),
    ],
)
def test_a_wrong_value_is_named_by_row_column_and_reason(
    column: str, value: object, reason: str
) -> None:
    assert fault_of(**{column: value}) == (422, [{"row": 1, "column": column, "reason": reason}])


def without(column: str, **others: object) -> dict[str, Any]:
    return {name: value for name, value in {**ROW, **others}.items() if name != column}


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
@pytest.mark.parametrize("column", SPEC.columns, ids=SPEC.input_names)
def test_an_absent_column_is_null_where_null_is_allowed(column: Column, count: int) -> None:
    rows = [without(column.name)] * count
    documents: list[object] = [
        {"inputs": rows},
        {"instances": {name: [value] * count for name, value in rows[0].items()}},
        {"dataframe_split": {"columns": [*rows[0]], "data": [[*row.values()] for row in rows]}},
    ]
    for document in documents:
        if column.nullable:
            assert rows_of(document) == [{**ROW, column.name: None}] * count
        else:
            assert refusal_of(document).faults == [
                {"row": row, "column": column.name, "reason": "is missing"} for row in range(count)
            ]


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
def test_a_surplus_column_is_left_out(count: int) -> None:
    rows = [{"Unnamed: 0": 7, **ROW, "species": "Gentoo", "note": {"a": [1]}}] * count
    assert rows_of({"inputs": rows}) == [ROW] * count
    assert rows_of({"inputs": [*rows, ROW]}) == [ROW] * (count + 1)


def test_a_surplus_column_beside_a_missing_one_may_be_its_misspelt_name() -> None:
    assert rows_of({"inputs": [without("sex", species="Gentoo")]}) == [{**ROW, "sex": None}]
    for missing, reasons in (("sex", []), ("island", ["is missing"])):
        error = refusal_of({"inputs": [ROW, without(missing, Wings="MALE")]})
        assert [fault["reason"] for fault in error.faults] == [
            *reasons,
            f"is no known column, while {missing} is missing",
        ]
        assert (error.faults[-1]["row"], error.faults[-1]["column"]) == (1, "Wings")


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
@pytest.mark.parametrize("partial", [False, True])
def test_nan_is_null(count: int, partial: bool) -> None:
    rows = [{**ROW, "sex": float("nan"), "body_mass_g": float("nan")}] * count
    body = b"\xef\xbb\xbf" + json.dumps({"dataframe_records": rows}).encode()
    assert b"NaN" in body
    accepted = VALIDATOR.accept(body, JSON_TYPE, partial)
    assert accepted.rows == [{**ROW, "sex": None, "body_mass_g": None}] * count
    assert accepted.faults == []


def test_what_python_alone_can_read_leaves_the_same_rows() -> None:
    # One NaN lets another parser read the whole body.
    row = {**ROW, "culmen_length_mm": 48.60000000000001, "culmen_depth_mm": 16}
    for text in (json.dumps(row), json.dumps(row, indent=1)):
        plain = f'{{"inputs": [{text}, {text}], "params": null}}'
        odd = plain.replace("null", "NaN")
        accepted = [VALIDATOR.accept(body.encode(), JSON_TYPE).rows for body in (plain, odd)]
        assert [[*map(repr, rows)] for rows in accepted] == [[repr(row)] * 2] * 2


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
@pytest.mark.parametrize("validator", [VALIDATOR, OPEN], ids=["closed", "open"])
def test_a_text_means_what_it_means_in_csv(validator: Validator, count: int) -> None:
    sent = {**ROW, "island": " Biscoe", "body_mass_g": "5.8e3 ", "sex": "", "culmen_depth_mm": "NA"}
    kept = {**ROW, "sex": None, "culmen_depth_mm": None}
    body = json.dumps({"inputs": [sent] * count}).encode()
    assert validator.accept(body, JSON_TYPE).rows == [kept] * count
    table = "\n".join([",".join(sent), *[",".join(map(str, sent.values()))] * count])
    assert validator.accept(table.encode(), "text/csv").rows == [kept] * count


def test_a_category_that_is_a_number_may_be_sent_as_one() -> None:
    column = CategoricalColumn("class", "Class", ("1", "2", "03", "NA", "-4"), nullable=True)
    for allow_unknown in (False, True):
        spec = replace(SPEC, columns=(replace(column, allow_unknown=allow_unknown),))
        sent = [1, 2.0, "1", " 2 ", "NA", "", "03", -4, float("nan")]
        body = json.dumps({"inputs": [{"class": value} for value in sent]}).encode()
        kept = [row["class"] for row in Validator(spec).accept(body, JSON_TYPE).rows]
        assert kept == ["1", "2", "1", "2", "NA", None, "03", "-4", None]
        for other in (3, 1.5, True, 10**30, [1]):
            error = refusal_of({"inputs": [{"class": other}]}, Validator(spec))
            assert error.faults[0]["reason"].startswith("must be a string, not ")


@pytest.mark.parametrize(
    "beside",
    [
        {"params": {"temperature": 1}},
        {"params": None, "signature_name": "serving_default"},
        {"client_request_id": "7", "usage_context": {"team": "birds"}},
        {"rows": [{}], "": [[]]},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_stands_beside_the_rows_is_ignored(beside: dict[str, object], first: bool) -> None:
    table: dict[str, object] = {"inputs": [ROW]}
    assert rows_of({**beside, **table} if first else {**table, **beside}) == [ROW]


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


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
def test_the_spec_can_allow_unknown_categories(count: int) -> None:
    rows = [{**ROW, "island": "Anvers", "sex": None}] * count
    assert OPEN.accept(json.dumps({"inputs": rows}).encode(), JSON_TYPE).rows == rows


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x" * (MAX_TEXT + 1), f"must have at most 256 characters, not '{'x' * 40}'..."),
        ("An\0vers", "may not hold the character NUL, not 'An\\x00vers'"),
        ("An\ud800vers", "may not hold half a surrogate pair, not 'An\\ud800vers'"),
        (None, "may not be null"),
        (["Anvers"], "must be a string, not a list of 1"),
    ],
)
def test_an_unknown_category_must_be_a_text_that_can_be_kept(
    value: object, reason: str, count: int
) -> None:
    error = refusal_of({"inputs": [ROW] * (count - 1) + [{**ROW, "island": value}]}, OPEN)
    assert error.faults == [{"row": count - 1, "column": "island", "reason": reason}]


def test_a_column_of_many_rows_may_be_null_throughout() -> None:
    rows = [{**ROW, "body_mass_g": None, "sex": None}] * 50
    assert rows_of({"inputs": rows}) == rows


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
        {"dataframe_split": {"columns": list(ROW), "data": [ROW]}},
        {"dataframe_split": {"columns": ["sex"], "data": "MALE"}},
        {"dataframe_split": {"columns": [*map(str, range(20_000))], "data": []}},
        {"dataframe_split": {"columns": list(ROW), "data": [[*ROW.values()]], "index": [1, 2]}},
        {"dataframe_split": {"columns": list(ROW), "data": [[*ROW.values()]], "index": 7}},
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is empty; send rows as JSON."),
        (b"{", "line 1, column 2, at its end"),
        (b"inputs", "expecting value (line 1, column 1, at 'inputs')"),
        (b"\xff\xfe", "not UTF-8: invalid start byte (byte 0)"),
        (b'{"inputs": "\xed\xa0\x80"}', "not UTF-8: invalid continuation byte (byte 12)"),
        (b'{"inputs": [}', "expecting value (line 1, column 13, at '}')"),
        (b'{"inputs": [NaN,\n 01]}', "line 2, column 3, at '1]}'"),
        (b"\x00", "expecting value (line 1, column 1, at '\\x00')"),
    ],
)
def test_what_is_not_json_is_malformed_and_reported_where(body: bytes, message: str) -> None:
    assert refusal_of(body).status == 400
    assert message in refusal_of(body).message


@pytest.mark.parametrize("depth", [50, 1_000, 100_000])
def test_what_is_nested_too_deep_is_malformed(depth: int) -> None:
    assert refusal_of(b'{"inputs":' + b"[" * depth + b"]" * depth + b"}").status == 400


def test_the_list_of_faults_is_bounded() -> None:
    assert len(refusal_of({"inputs": [{}] * MAX_ROWS}).faults) == MAX_FAULTS
    assert len(refusal_of({"inputs": [{str(i): i for i in range(5000)}]}).faults) == MAX_FAULTS


WRONG: list[dict[str, Any]] = [
    {**ROW, "body_mass_g": -1},
    {**without("flipper_length_mm"), "island": "Anvers", "wings": 2},
    without("island"),
]


def test_the_valid_rows_alone_are_taken_where_that_is_asked_for() -> None:
    body = json.dumps({"inputs": [WRONG[0], ROW, WRONG[1], OTHER, WRONG[2], 5]}).encode()
    accepted = VALIDATOR.accept(body, JSON_TYPE, partial=True)
    assert accepted.rows == [ROW, OTHER]
    assert (list(accepted.positions), accepted.total) == ([1, 3], 6)
    assert [fault["row"] for fault in accepted.faults] == [0, 2, 2, 4, 5]
    assert accepted.faults[3] == {"row": 4, "column": "island", "reason": "is missing"}
    assert accepted.reasons == [
        "body_mass_g: is not in range",
        "island: is no known category",
        "unknown column",
        "island: is missing",
        "misshapen row",
    ]


def test_a_request_without_any_valid_row_is_refused_even_in_part() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        VALIDATOR.accept(json.dumps({"inputs": WRONG}).encode(), JSON_TYPE, partial=True)
    assert caught.value.status == 422
    assert caught.value.faults[0]["column"] == "body_mass_g"


def test_what_is_nested_too_deep_is_refused_even_in_part() -> None:
    deep = b"[" * 40 + b"]" * 40
    body = b'{"inputs":[' + json.dumps(ROW).encode() + b',{"island":' + deep + b"}]}"
    with pytest.raises(InvalidRequestError) as caught:
        VALIDATOR.accept(body, JSON_TYPE, partial=True)
    assert (caught.value.status, caught.value.reasons) == (400, ["too deep"])


def test_every_row_left_out_is_named_and_the_list_stays_bounded() -> None:
    rows = [ROW, *[{**without("sex"), **{str(i): i for i in range(40)}}] * 500]
    body = json.dumps({"inputs": rows}).encode()
    accepted = VALIDATOR.accept(body, JSON_TYPE, partial=True)
    assert {fault["row"] for fault in accepted.faults} == set(range(1, 501))
    assert len(accepted.faults) <= MAX_FAULTS + 500


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "malformed"),
        (b"[" * 2000 + b"]" * 2000, "too deep"),
        (b"[]", "no table"),
        (b'{"inputs":[]}', "no rows"),
        (b'{"inputs":[' + b"1," * MAX_ROWS + b"1]}", "too many rows"),
        (b'{"inputs":[1]}', "misshapen row"),
        (b'{"inputs":[{}]}', "island: is missing"),
        (json.dumps({"inputs": [WRONG[0]]}).encode(), "body_mass_g: is not in range"),
        (json.dumps({"inputs": [without("sex", **{"My secret": 1})]}).encode(), "unknown column"),
    ],
)
def test_a_refusal_is_counted_under_a_name_that_no_request_can_choose(
    body: bytes, reason: str
) -> None:
    assert refusal_of(body).reasons[0] == reason


def test_a_refusal_without_faults_is_counted_by_its_status() -> None:
    assert InvalidRequestError(413, "The body is larger than 6 MB.").reasons == ["too large"]
