"""The OpenAPI document and the models that it is made from accept what the server accepts."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlschool_dagster.dataset.spec import CategoricalColumn, DataSpec, NumericColumn
from mlschool_dagster.serving.model_router import plausible_rows
from mlschool_dagster.serving.openapi import answer_model, openapi_document, request_model
from mlschool_dagster.serving.parsing import document_of
from mlschool_dagster.serving.validation import InvalidRequestError, Validator, value_readers
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC

HOSTILE = "</code><script>alert('1')</script>\"&"
OTHER_SPEC = replace(
    SPEC,
    name=HOSTILE,
    description=HOSTILE,
    columns=(
        CategoricalColumn("it's free", HOSTILE, ("it's", HOSTILE), allow_unknown=True),
        CategoricalColumn(HOSTILE, "Closed", ("a", HOSTILE), nullable=True),
        NumericColumn("weight", HOSTILE, -1.5, 1e6, unit="µg"),
    ),
)
OPTIONAL_SPEC = replace(SPEC, columns=(NumericColumn("weight", "Light", 0, 1, nullable=True),))
SPECS = [SPEC, OTHER_SPEC, OPTIONAL_SPEC]
DOCUMENTS = [openapi_document(spec, "penguins") for spec in SPECS]
REQUESTS = [request_model(spec) for spec in SPECS]


def judge(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Judges values by `schema`, whose references are looked up in `document`."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


JUDGES = [judge(document, {"$ref": "#/components/schemas/Request"}) for document in DOCUMENTS]


def resolve(reference: str, document: dict[str, Any]) -> Any:
    result: Any = document
    for part in reference.removeprefix("#/").split("/"):
        result = result[part]
    return result


def nodes(value: Any) -> Iterator[Any]:
    yield value
    for child in value.values() if isinstance(value, dict) else ():
        yield from nodes(child)
    for child in value if isinstance(value, list | tuple) else ():
        yield from nodes(child)


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def accepts(spec: DataSpec, body: str, media_type: str = "application/json") -> bool:
    try:
        Validator(spec).accept(body.encode(), media_type)
    except InvalidRequestError:
        return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_document_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert {"title", "version"} <= document["info"].keys()
    assert json.loads(json.dumps(document)) is not None
    used = {node["$ref"] for node in nodes(document) if isinstance(node, dict) and "$ref" in node}
    for reference in used:
        assert resolve(reference, document)
    defined = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert used == defined
    for operation in operations(document):
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"]
            assert all("schema" in content for content in response["content"].values())
        for parameter in operation.get("parameters", ()):
            assert parameter["in"] in ("query", "header")
            assert {"name", "schema", "description"} <= parameter.keys()
    schemes = document["components"]["securitySchemes"].keys()
    assert all(need.keys() <= schemes for need in document["security"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_schemas_are_schemas(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(
            {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"}
        )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_examples_keep_their_schemas(document: dict[str, Any]) -> None:
    shown = [
        (content["schema"], content["example"])
        for operation in operations(document)
        for holder in [operation.get("requestBody"), *operation["responses"].values()]
        if holder is not None
        for content in holder["content"].values()
        if "example" in content
    ]
    assert len(shown) == 4
    for schema, content in shown:
        assert judge(document, schema).is_valid(content)


@pytest.mark.parametrize(("spec", "document"), zip(SPECS, DOCUMENTS, strict=True))
def test_the_server_takes_the_example_and_refuses_as_shown(
    spec: DataSpec, document: dict[str, Any]
) -> None:
    operation = document["paths"]["/invocations"]["post"]
    contents = operation["requestBody"]["content"]
    example = contents["application/json"]["example"]
    assert accepts(spec, json.dumps(example))
    validator = Validator(spec)
    from_csv = validator.accept(contents["text/csv"]["example"].encode(), "text/csv")
    assert from_csv.rows == example["inputs"]
    refusal = operation["responses"]["422"]["content"]["application/json"]["example"]
    (fault,) = refusal["faults"]
    assert fault["column"] == spec.input_names[0]
    if not spec.columns[0].nullable:
        assert fault == {"row": 0, "column": spec.input_names[0], "reason": "is missing"}


CELLS = (
    st.sampled_from(
        [*ROW.values(), 15, 90, 10_000, 0, -1, 1e9, "Dream", "x" * 300, None, True, "NA", " 40", ""]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.lists(st.none(), max_size=1)
)
RECORDS = st.builds(
    lambda changes, dropped: {k: v for k, v in {**ROW, **changes}.items() if k not in dropped},
    st.dictionaries(st.sampled_from([*ROW, "wings", SPEC.target.name]), CELLS, max_size=2),
    st.sets(st.sampled_from(list(ROW)), max_size=2),
)
FREE = st.fixed_dictionaries(
    {"it's free": CELLS, HOSTILE: st.sampled_from(["a", HOSTILE, None]), "weight": st.just(2.5)}
)


FORMS = ["inputs", "instances", "dataframe_records", "rows"]


def model_accepts(spec: DataSpec, body: str) -> bool:
    """Whether pydantic accepts `body` by the model that the document is made from."""
    try:
        REQUESTS[SPECS.index(spec)].model_validate(document_of(body.encode(), len(spec.columns)))
    except (ValidationError, InvalidRequestError):
        return False
    return True


def assert_takes_alike(spec: DataSpec, request: Any, records: list[Any]) -> None:
    """Server and model take the same; so does the schema, but for texts to be read as in CSV."""
    body = json.dumps(request)
    taken = accepts(spec, body)
    assert model_accepts(spec, body) == taken
    readers = value_readers(spec)
    is_plain = all(
        read(value) == value
        for record in records
        for name, value in record.items()
        if (read := readers.get(name)) is not None
    )
    promised = JUDGES[SPECS.index(spec)].is_valid(request)
    assert taken == promised if is_plain else taken or not promised


@given(
    records=st.lists(RECORDS, max_size=3) | RECORDS,
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=2),
)
def test_the_schema_takes_exactly_the_records_that_the_server_takes(
    records: list[dict[str, Any]] | dict[str, Any], forms: list[str]
) -> None:
    rows = records if isinstance(records, list) else [records]
    assert_takes_alike(SPEC, dict.fromkeys(forms, records), rows)


@given(
    record=RECORDS,
    order=st.randoms(use_true_random=False),
    rows=st.integers(1, 6),
    index=st.none() | st.just([0]),
)
def test_the_schema_takes_all_tables_that_the_server_takes(
    record: dict[str, Any], order: Random, rows: int, index: list[int] | None
) -> None:
    names = order.sample(list(record), len(record))
    columns = {name: [record[name]] * rows for name in names}
    assert_takes_alike(SPEC, {"inputs": columns}, [record])
    split: dict[str, Any] = {"columns": names, "data": [[record[name] for name in names]] * rows}
    if index is not None:
        split["index"] = index * rows
    request = {"dataframe_split": split}
    taken = accepts(SPEC, json.dumps(request))
    assert model_accepts(SPEC, json.dumps(request)) == taken
    assert JUDGES[0].is_valid(request) or not taken


@given(record=FREE)
def test_the_schema_takes_exactly_the_free_texts_that_the_server_takes(
    record: dict[str, Any],
) -> None:
    assert_takes_alike(OTHER_SPEC, {"inputs": [record]}, [record])


@pytest.mark.parametrize(
    "request_body",
    [
        {"inputs": ROW},
        {"instances": {name: [value, value] for name, value in ROW.items()}},
        {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())], "index": [7]}},
    ],
)
def test_the_schema_takes_every_form_of_the_protocol(request_body: dict[str, Any]) -> None:
    assert accepts(SPEC, json.dumps(request_body))
    assert model_accepts(SPEC, json.dumps(request_body))
    assert JUDGES[0].is_valid(request_body)


ANYTHING = st.recursive(
    CELLS | st.integers() | st.just(10**20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ROW, "weight", "data"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn, spec: DataSpec) -> Any:
    """Requests for rows of `spec` in any form, most of them nearly valid."""
    names = [*spec.input_names, spec.target.name, "wings"]
    record = dict(draw(st.sampled_from(plausible_rows(spec))))
    record |= draw(st.dictionaries(st.sampled_from(names), CELLS, max_size=1))
    for name in draw(st.sets(st.sampled_from(names), max_size=1)):
        record.pop(name, None)
    rows = draw(st.lists(st.just(record), min_size=1, max_size=2) | st.lists(ANYTHING, max_size=2))
    columns = {
        name: [value] * draw(st.sampled_from([2, 2, 2, 1])) for name, value in record.items()
    }
    split: dict[str, Any] = {"columns": list(record), "data": [list(record.values())]}
    split |= draw(
        st.fixed_dictionaries({}, optional={"index": st.none() | st.just([1]) | ANYTHING})
    )
    table = draw(st.sampled_from([record, rows, columns]) | ANYTHING)
    body = {
        draw(st.sampled_from(["inputs", "instances"])): table,
        "dataframe_records": draw(st.sampled_from([rows, table])),
        "dataframe_split": draw(st.sampled_from([split, table])),
    }
    form, others = st.sampled_from(list(body)), st.sampled_from([*body, "params", "params"])
    chosen = [draw(form), *draw(st.lists(others, max_size=1))]
    return {name: body.get(name) for name in chosen}


BODIES = [bodies(spec) for spec in SPECS]


@pytest.mark.parametrize("at", range(len(SPECS)), ids=["penguins", "texts", "optional"])
@given(data=st.data())
def test_the_model_takes_exactly_what_the_server_takes(at: int, data: st.DataObject) -> None:
    text = json.dumps(data.draw(BODIES[at]))
    assert model_accepts(SPECS[at], text) == accepts(SPECS[at], text)


@pytest.mark.parametrize(
    ("body", "is_taken"),
    [
        ({"inputs": {}}, False),
        ({"inputs": [{}]}, True),
        ({"inputs": None}, False),
        ({"dataframe_split": {"columns": [], "data": [[]]}}, True),
        ({"dataframe_split": {"columns": ["weight"] * 2, "data": [[0.5, 0.5]]}}, False),
        ({"inputs": {"weight": [0.5, None], "wings": [1]}}, False),
        ({"inputs": {"weight": [0.5, None], "wings": [1, []]}}, True),
        ({"inputs": [{"weight": " 0.5"}]}, True),
        ({"inputs": [{"species": "Adelie"}]}, True),
        ({"inputs": [{"wings": 2}]}, False),
    ],
)
def test_a_row_may_lack_all_that_may_be_null(body: Any, is_taken: bool) -> None:
    assert accepts(OPTIONAL_SPEC, json.dumps(body)) is is_taken
    assert model_accepts(OPTIONAL_SPEC, json.dumps(body)) is is_taken


def test_its_answer_is_what_the_model_of_answers_describes() -> None:
    for spec, document in zip(SPECS, DOCUMENTS, strict=True):
        operation = document["paths"]["/invocations"]["post"]
        shown = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert answer_model(spec).model_validate(shown)
