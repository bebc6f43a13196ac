"""CSV holds the same rows as JSON does, under the same limits."""

import csv
import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import InputValue, NumericColumn
from mlschool_dagster.serving import parsing
from mlschool_dagster.serving.parsing import (
    FEWEST_VALUES,
    MAX_LINE,
    MAX_LINES,
    MAX_ROWS,
    _document_in_pieces,
    document_of,
)
from mlschool_dagster.serving.validation import Accepted, InvalidRequestError, Validator
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC

VALIDATOR = Validator(SPEC)
HEADER = ",".join(ROW)
LINE = "Biscoe,48.6,16.0,230,5800,MALE"


def accepted(text: str, partial: bool = False) -> Accepted:
    return VALIDATOR.accept(text.encode(), "text/csv", partial)


def refusal_of(body: str | bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        VALIDATOR.accept(body.encode() if isinstance(body, str) else body, "text/csv")
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n{LINE}",
        f"{HEADER}\r\n{LINE}\r\n",
        f"{HEADER}\r{LINE}\r",
        f"\ufeff{HEADER}\n\n{LINE}\n\n",
        f'{HEADER}\n"Biscoe","48.6",+16, 230 ,5.8e3,"MALE"\n',
        f"{','.join(reversed(HEADER.split(',')))}\n{','.join(reversed(LINE.split(',')))}\n",
    ],
)
def test_a_table_with_a_header_row_is_read(text: str) -> None:
    assert accepted(text).rows == [ROW]


def test_an_empty_cell_is_null() -> None:
    row = accepted(f"{HEADER}\nDream,,16,230,5800,\n").rows[0]
    assert (row["culmen_length_mm"], row["sex"]) == (None, None)


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        (
            "Biscoe,48.6,16,230,-5800,MALE",
            "body_mass_g",
            "must be between 1000 and 10000 g, not -5800.0",
        ),
        ("Biscoe,48.6,16,230,5_800,MALE", "body_mass_g", "must be a number, not '5_800'"),
        ("Biscoe,48.6,16,230,heavy,MALE", "body_mass_g", "must be a number, not 'heavy'"),
        (
            "Biscoe,48.6,16,230,\u0665\u0668\u0660\u0660,MALE",
            "body_mass_g",
            "must be a number, not '\u0665\u0668\u0660\u0660'",
        ),
        ("Biscoe,48.6,16,230,-inf,MALE", "body_mass_g", "must be a finite number, not -inf"),
        ("Biscoe,48.6,16,230,1e999,MALE", "body_mass_g", "must be a finite number, not inf"),
        (
            "Anvers,48.6,16,230,5800,MALE",
            "island",
            "must be one of Biscoe, Dream, Torgersen, not 'Anvers'",
        ),
        (",48.6,16,230,5800,MALE", "island", "may not be null"),
    ],
)
@pytest.mark.parametrize("count", [1, 20])
def test_a_wrong_cell_is_named_by_row_column_and_reason(
    line: str, column: str, reason: str, count: int
) -> None:
    error = refusal_of("\n".join([HEADER, *[LINE] * count, line, LINE]))
    assert (error.status, error.faults) == (
        422,
        [{"row": count, "column": column, "reason": reason}],
    )


def test_a_row_of_another_length_is_named_and_can_be_left_out() -> None:
    text = f"{HEADER}\n{LINE}\nBiscoe,48.6\n{LINE},7\n"
    assert refusal_of(text).faults == [
        {"row": 1, "reason": "must be a row of 6 cells, not a list of 2"},
        {"row": 2, "reason": "must be a row of 6 cells, not a list of 7"},
    ]
    assert accepted(text, partial=True).positions == [0]


def test_columns_are_checked_by_name() -> None:
    error = refusal_of(f"wings,{HEADER.partition(',')[2]}\n{LINE}\n")
    assert {(fault["column"], fault["reason"]) for fault in error.faults} == {
        ("island", "is missing"),
        ("wings", "is no known column, while island is missing"),
    }
    assert accepted(f"wings,{HEADER}\n7,{LINE}\n").rows == [ROW]


@pytest.mark.parametrize(
    ("first", "described"),
    [
        (LINE, "'Biscoe', '48.6', '16.0'"),
        (HEADER.replace(",", ":"), f"'{HEADER.replace(',', ':')[:40]}'..."),
    ],
)
@pytest.mark.parametrize("more", ["", f"\n{LINE}", f"\n{LINE}\n{LINE}\n"])
def test_a_first_line_that_names_no_column_is_reported_as_such(
    first: str, described: str, more: str
) -> None:
    error = refusal_of(first + more)
    reason = f"the first line must name the columns ({', '.join(ROW)}), and is {described}"
    assert (error.status, error.faults) == (422, [{"reason": reason}])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"\xff\xfe",
        b'"island',
        b'island\n"Biscoe"x',
        b"x" * (MAX_LINE + 1),
        HEADER.encode() + b'\nBiscoe,48.6,16,230,5800,"MALE',
        b"," * (MAX_LINE + 1),
        b'"' + b"x" * MAX_LINE + b"\n" + b"x" * MAX_LINE + b"\n" + b"x" * MAX_LINE + b'"\n',
    ],
)
def test_what_is_no_csv_is_malformed(body: bytes) -> None:
    assert (refusal_of(body).status, refusal_of(body).reasons) == (400, ["malformed"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEADER, "no rows"),
        ("sex,sex\nMALE,MALE", "no table"),
        (f"{HEADER}\n{LINE}" + "\n" * (MAX_LINES + 1), "too many rows"),
        (f"{HEADER}\r{LINE}" + "\r" * (MAX_LINES + 1), "too many rows"),
        ("\n".join([HEADER, *[LINE] * (MAX_ROWS + 1)]), "too many rows"),
    ],
)
def test_what_is_csv_but_no_input_is_refused(text: str, reason: str) -> None:
    assert (refusal_of(text).status, refusal_of(text).reasons) == (422, [reason])


ROWS = st.fixed_dictionaries(
    {
        column.name: (
            st.integers(int(column.minimum), int(column.maximum))
            | st.floats(column.minimum, column.maximum)
            if isinstance(column, NumericColumn)
            else st.sampled_from(column.categories)
        )
        | (st.none() if column.nullable else st.nothing())
        for column in SPEC.columns
    }
)


@given(rows=st.lists(ROWS, min_size=1, max_size=12))
def test_the_same_rows_are_the_same_in_json_and_csv(rows: list[dict[str, InputValue]]) -> None:
    assert VALIDATOR.accept(as_csv(rows), "text/csv").rows == rows
    body = json.dumps({"inputs": rows}).encode()
    assert VALIDATOR.accept(body, "application/json").rows == rows


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROW))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def test_what_would_stop_other_requests_for_long_is_refused_before_it_is_parsed() -> None:
    # Not even JSON, which only parsing would find out.
    many = b"," * (FEWEST_VALUES + 1)
    with pytest.raises(InvalidRequestError) as refusal:
        document_of(many, 7)
    assert refusal.value.status == 422
    assert "split it" in str(refusal.value.faults)
    # A wide table has as many as it needs.
    columns = FEWEST_VALUES // MAX_ROWS
    rows = orjson.dumps({"inputs": [[0] * columns] * MAX_ROWS})
    assert document_of(rows, columns)


NASTY = st.sampled_from(["a", "},{", "], [", "]}", '"', "\\", "\N{GRINNING FACE}", "data"])
VALUES = st.recursive(
    NASTY | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["inputs", "dataframe_records", "params"]),
    st.lists(st.dictionaries(NASTY, VALUES, max_size=2), max_size=4) | VALUES,
    max_size=2,
) | st.fixed_dictionaries(
    {
        "dataframe_split": st.fixed_dictionaries(
            {"columns": st.lists(NASTY), "data": st.lists(st.lists(VALUES), max_size=4)},
            optional={"index": VALUES},
        )
    }
)


@given(
    document=DOCUMENTS,
    indent=st.sampled_from([None, 0, 2]),
    separators=st.sampled_from([None, (",", ":")]),
    change=st.none()
    | st.tuples(st.integers(0, 200), st.sampled_from(["", "]", "}", ",", '"', "["])),
)
def test_a_document_in_pieces_is_the_document(
    document: Any, indent: int | None, separators: Any, change: tuple[int, str] | None
) -> None:
    text = json.dumps(document, indent=indent, separators=separators, ensure_ascii=False)
    if change is not None:
        text = text[: change[0]] + change[1] + text[change[0] + 1 :]
    body = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "PIECE", 1)
        in_pieces = _document_in_pieces(body)
    if in_pieces is not None:
        assert in_pieces == orjson.loads(body)
    elif change is None:
        rows = document.get("inputs", document.get("dataframe_records"))
        is_usual = list(document) in (["inputs"], ["dataframe_records"])
        assert not (is_usual and isinstance(rows, list) and rows and isinstance(rows[0], dict))


@pytest.mark.parametrize("rows", [[ROW] * 5000, [list(ROW.values())] * 5000])
def test_large_tables_of_the_usual_layouts_are_parsed_in_pieces(rows: list[Any]) -> None:
    is_split = isinstance(rows[0], list)
    document: Any = (
        {"dataframe_split": {"columns": list(ROW), "data": rows}} if is_split else {"inputs": rows}
    )
    for body in (orjson.dumps(document), json.dumps(document).encode()):
        assert len(body) > 2 * parsing.PIECE
        assert _document_in_pieces(body) == document
