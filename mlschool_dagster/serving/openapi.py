"""What the endpoint takes and answers, as an OpenAPI 3.1 document that follows from the data spec.

The document's examples are made by the parts that they show, so that they hold.
"""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from mlschool_dagster.capture.records import Role
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.serving.invocations import EVENT_ID_HEADERS, MAX_EVENT_ID, VARIANT_HEADER
from mlschool_dagster.serving.model_router import plausible_rows
from mlschool_dagster.serving.openapi_page import openapi_page
from mlschool_dagster.serving.openapi_schemas import (
    Schema,
    input_schemas,
    output_schemas,
    reference,
)
from mlschool_dagster.serving.parsing import MAX_ROWS
from mlschool_dagster.serving.request_body import MAX_BODY
from mlschool_dagster.serving.validation import Row, Validator
from mlschool_dagster.serving.validation_errors import InvalidRequestError

__all__ = ["openapi_document", "openapi_page"]

REFUSALS: Mapping[int, str] = {
    400: "The body is malformed or nested too deep, or a header or parameter is not valid.",
    408: "Headers or body did not arrive in time.",
    409: "The event id already belongs to a request with other input.",
    413: f"The body is larger than {MAX_BODY // 1024**2} MB.",
    415: "The body is neither JSON nor CSV, is compressed, or is not UTF-8.",
    422: "The input is not valid; the faults name row, column and reason.",
    431: "The headers are too large.",
    500: "The server failed; its log says why.",
}
UNAUTHORIZED = "A token is required and was not presented."
UNAVAILABLE = "No version serves yet, or the request could not be kept; try again."


def openapi_document(spec: DataSpec, name: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the endpoint `name`, whose model has `spec`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Endpoint {name}",
            "summary": f"Predicts {spec.target.name} from a row of {spec.name}.",
            "description": spec.description,
            "version": "1",
        },
        # A token is asked for only where one is set.
        "security": [{}, {"token": []}],
        "paths": {
            "/invocations": {"post": _predict(spec)},
            "/ping": {"get": {**_get("Whether a version serves", "Empty"), "security": []}},
            "/ready": {"get": {**_get("Whether a version serves", "Empty"), "security": []}},
            "/live": {
                "get": {**_get("Whether the server answers at all", "Empty"), "security": []}
            },
            "/version": {"get": _get("Which version serves, and since when", "Version")},
            "/health": {"get": _get("The whole state of the worker that answers", "Health")},
            "/metrics": {"get": _get_text("Metrics for Prometheus", "text/plain")},
            "/openapi.json": {"get": _get("This document", "Document")},
            "/docs": {"get": _get_text("This document, to be read", "text/html")},
        },
        "components": {
            "schemas": {**input_schemas(spec), **output_schemas(spec)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _predict(spec: DataSpec) -> Schema:
    row = plausible_rows(spec)[1]
    return {
        "operationId": "predict",
        "summary": f"Predict the {spec.target.name} of one or more rows",
        "description": (
            "Every answered row that belongs to the captured sample is durable before the answer "
            "is sent. A request is taken as a whole or refused as a whole, unless on_error is "
            f"partial. It may hold {MAX_ROWS} rows and {MAX_BODY // 1024**2} MB. A CSV body has a "
            "header row."
        ),
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": reference("Request"),
                    "example": {"inputs": [row]},
                },
                "text/csv": {"schema": {"type": "string"}, "example": _csv(row)},
            },
        },
        "responses": {
            "200": {
                "description": "A prediction for each row, in the order of the request.",
                "content": _content("Answer", _answer(spec)),
            },
            **{str(status): _error(text) for status, text in REFUSALS.items()},
            "401": _unauthorized(),
            "422": _error(REFUSALS[422], _refusal(spec, row)),
            "503": _unavailable(),
        },
    }


def _parameters() -> list[Schema]:
    event_ids = [
        _header(
            header,
            "Becomes the event id of the first row; the others get it with #1, #2, ... appended. A "
            "request that is sent again with the same id and rows is captured once."
            + (f" Counts where {EVENT_ID_HEADERS[0].decode().title()} is missing." if i else ""),
            {"type": "string", "minLength": 1, "maxLength": MAX_EVENT_ID},
        )
        for i, header in enumerate(EVENT_ID_HEADERS)
    ]
    variant = _header(
        VARIANT_HEADER,
        "Has the version in this role predict. Shadow and candidate take probes of "
        "whoever deploys only.",
        {"type": "string", "enum": [role.value for role in Role]},
    )
    on_error: Schema = {
        "name": "on_error",
        "in": "query",
        "description": (
            "What to do with a request in which some rows are not valid: refuse it, or answer the "
            "valid rows, with null in place of the others and their faults beside."
        ),
        "schema": {"type": "string", "enum": ["refuse", "partial"], "default": "refuse"},
    }
    return [on_error, *event_ids, variant]


def _header(name: bytes, description: str, schema: Schema) -> Schema:
    return {
        "name": name.decode().title(),
        "in": "header",
        "description": description,
        "schema": schema,
    }


def _answer(spec: DataSpec) -> Schema:
    """What an answer to one row looks like; the shares are made up."""
    classes = spec.target.classes
    others = [0.02] * (len(classes) - 1)
    shares = [round(1 - sum(others), 2), *others]
    prediction = {
        "prediction": classes[0],
        "confidence": shares[0],
        "probabilities": dict(zip(classes, shares, strict=True)),
        "event_id": "019a9f3c-5b1e-7c44-8a50-2f9d60c1b7e3",
    }
    return {"predictions": [prediction], "model_version": "3"}


def _refusal(spec: DataSpec, row: Row) -> Schema:
    """What is answered where `row` lacks a column, or has a list for a value if it may lack all."""
    required = [column.name for column in spec.columns if not column.nullable]
    wrong: dict[str, Any] = dict(row)
    if required:
        del wrong[required[0]]
    else:
        wrong[spec.input_names[0]] = []
    try:
        Validator(spec).accept(json.dumps({"inputs": [wrong]}).encode(), "application/json")
    except InvalidRequestError as refusal:
        return {"error": refusal.message, "faults": refusal.faults}
    raise AssertionError("a row that breaks a rule was accepted")


def _csv(row: Row) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue()


def _get(summary: str, schema: str) -> Schema:
    return _operation(summary, _content(schema))


def _get_text(summary: str, media_type: str) -> Schema:
    return _operation(summary, {media_type: {"schema": {"type": "string"}}})


def _operation(summary: str, content: Schema) -> Schema:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": f"{summary}.", "content": content},
            "401": _unauthorized(),
            "503": _unavailable(),
        },
    }


def _error(description: str, example: Schema | None = None) -> Schema:
    return {"description": description, "content": _content("Error", example)}


def _unauthorized() -> Schema:
    challenge = {"description": "Bearer", "schema": {"type": "string"}}
    return {**_error(UNAUTHORIZED), "headers": {"WWW-Authenticate": challenge}}


def _unavailable() -> Schema:
    seconds = {"description": "Seconds to wait", "schema": {"type": "integer"}}
    return {**_error(UNAVAILABLE), "headers": {"Retry-After": seconds}}


def _content(schema: str, example: Schema | None = None) -> Schema:
    shown = {} if example is None else {"example": example}
    return {"application/json": {"schema": reference(schema), **shown}}
