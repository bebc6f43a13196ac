"""The document says what the server does, and the page says what the document does."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.dataset.cells import cell_readers
from mlschool_dagster.dataset.spec import CategoricalColumn, DataSpec, NumericColumn
from mlschool_dagster.serving.openapi import openapi_document, openapi_page
from mlschool_dagster.serving.validation import InvalidRequestError, Validator
from mlschool_dagster_tests.serving.json_schema import ANNOTATIONS, RULES, conforms, resolve
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
REQUEST = {"$ref": "#/components/schemas/Request"}


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
def test_its_schemas_use_no_word_that_is_none_of_json_schema(document: dict[str, Any]) -> None:
    def check(schema: dict[str, Any]) -> None:
        assert schema.keys() <= RULES.keys() | ANNOTATIONS
        for child in schema.get("properties", {}).values():
            check(child)
        for child in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            check(child)
        for inner in ("items", "propertyNames", "additionalProperties"):
            if schema.get(inner):
                check(schema[inner])

    for schema in document["components"]["schemas"].values():
        check(schema)


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
    for schema, example in shown:
        assert conforms(example, schema, document)


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
    st.dictionaries(st.sampled_from([*ROW, "wings"]), CELLS, max_size=2),
    st.sets(st.sampled_from(list(ROW)), max_size=2),
)
FREE = st.fixed_dictionaries(
    {"it's free": CELLS, HOSTILE: st.sampled_from(["a", HOSTILE, None]), "weight": st.just(2.5)}
)


FORMS = ["inputs", "instances", "dataframe_records", "rows"]


def assert_takes_alike(spec: DataSpec, request: dict[str, Any], records: list[Any]) -> None:
    """The server takes what the schema takes; and nothing else but texts to be read as in CSV."""
    document = DOCUMENTS[SPECS.index(spec)]
    readers = cell_readers(spec)
    is_plain = all(
        type(value) is not str or name not in readers or readers[name](value) == value
        for record in records
        for name, value in record.items()
    )
    taken, promised = accepts(spec, json.dumps(request)), conforms(request, REQUEST, document)
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
    assert conforms(request, REQUEST, DOCUMENTS[0]) or not accepts(SPEC, json.dumps(request))


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
    assert conforms(request_body, REQUEST, DOCUMENTS[0])


class Page(HTMLParser):
    """The text, the tags and the attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(("spec", "document"), zip(SPECS, DOCUMENTS, strict=True))
def test_the_page_shows_it_all_and_needs_nothing_from_elsewhere(
    spec: DataSpec, document: dict[str, Any]
) -> None:
    html = openapi_page(document)
    page = Page(html)
    for column in spec.columns:
        assert column.name in page.text
        assert column.description in page.text
    for status in document["paths"]["/invocations"]["post"]["responses"]:
        assert status in page.text
    for path in document["paths"]:
        assert path in page.text
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.attributes.keys() <= {"lang", "charset", "name", "content", "href", "class"}
    assert page.attributes["href"] == "openapi.json"
    assert "://" not in html


def test_its_example_can_be_run_by_a_shell() -> None:
    page = Page(openapi_page(DOCUMENTS[1]))
    start = page.text.index("curl ")
    words = shlex.split(page.text[start : page.text.index("The answer")])
    assert (
        json.loads(words[-1])
        == (
            DOCUMENTS[1]["paths"]["/invocations"]["post"]["requestBody"]["content"][
                "application/json"
            ]["example"]
        )
    )
