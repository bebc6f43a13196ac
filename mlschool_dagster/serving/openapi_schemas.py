"""JSON schemas (2020-12) of what the endpoint takes and answers, derived from the data spec.

They state the plain form of a value. Texts may also be written as in CSV (a number, white space
around a category, a word for a missing value): that is taken, and left unsaid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlschool_dagster.dataset.cells import MISSING
from mlschool_dagster.dataset.spec import Column, DataSpec, NumericColumn
from mlschool_dagster.serving.column_rules import MAX_TEXT
from mlschool_dagster.serving.parsing import MAX_ROWS

Schema = dict[str, Any]


def input_schemas(spec: DataSpec) -> Schema:
    """The schemas of a request by name; ``Request`` is the whole body."""
    columns = {column.name: _column(column) for column in spec.columns}
    required = [column.name for column in spec.columns if not column.nullable]
    a_list = {"type": "array", "minItems": 1, "maxItems": MAX_ROWS}
    no_list = {"type": ["null", "boolean", "number", "string", "object"]}
    lists = {name: {**a_list, "items": schema} for name, schema in columns.items()}
    any_form = {"anyOf": [reference(form) for form in ("Rows", "Record", "Columns")]}
    forms = {
        "inputs": any_form,
        "instances": any_form,
        "dataframe_records": reference("Rows"),
        "dataframe_split": reference("Split"),
    }
    surplus = (
        " Columns that may be null may be absent. Other columns are left out, if none is absent."
    )
    return {
        "Request": {
            "description": (
                "Rows in one of the forms of MLflow's scoring protocol. What else there is, such "
                "as params, is ignored. A text is read as a cell of CSV is."
            ),
            "type": "object",
            "properties": forms,
            "oneOf": [{"required": [form]} for form in forms],
        },
        "Row": _by_column(f"One value for each column.{surplus}", columns, required, {}),
        "Rows": {**a_list, "items": reference("Row")},
        "Record": _by_column("A row that stands alone, as in Row.", columns, required, no_list),
        "Columns": _by_column(
            f"One list for each column, of one length.{surplus}", lists, required, a_list
        ),
        "Split": {
            "description": (
                "The names of the columns once, then the values of each row in their order."
                f"{surplus}"
            ),
            "type": "object",
            "properties": {
                "columns": {
                    "type": "array",
                    "items": {"type": "string"},
                    "uniqueItems": True,
                    "minItems": max(1, len(required)),
                },
                "data": {
                    **a_list,
                    "items": {"type": "array", "minItems": max(1, len(required))},
                },
                "index": {
                    "description": "An entry for each row, which is ignored.",
                    "type": ["array", "null"],
                },
            },
            "required": ["columns", "data"],
            "additionalProperties": False,
        },
    }


def _by_column(
    description: str, columns: Mapping[str, Schema], required: Sequence[str], surplus: Schema
) -> Schema:
    """An object by column: all that are `required` and no others, or all and any of `surplus`."""
    names = list(columns)
    return {
        "description": description,
        "type": "object",
        "properties": dict(columns),
        "additionalProperties": surplus,
        "anyOf": [
            {"required": names},
            {"required": list(required), "propertyNames": {"enum": names}},
        ],
    }


def _column(column: Column) -> Schema:
    if isinstance(column, NumericColumn):
        unit = f", in {column.unit}" if column.unit else ""
        return {
            "description": f"{column.description}{unit}",
            "type": ["number", "null"] if column.nullable else "number",
            "minimum": column.minimum,
            "maximum": column.maximum,
        }
    schema: Schema = {
        "description": column.description,
        "type": ["string", "null"] if column.nullable else "string",
    }
    if column.allow_unknown:
        return {
            **schema,
            "maxLength": MAX_TEXT,
            # No white space around it, and no NUL.
            "pattern": r"^[^\s\u0000]([^\u0000]*[^\s\u0000])?$",
            "not": {"enum": sorted(MISSING.difference(column.categories))},
            "examples": list(column.categories),
        }
    return {**schema, "enum": [*column.categories, *([None] if column.nullable else [])]}


def output_schemas(spec: DataSpec) -> Schema:
    """The schemas of answers by name; every refusal and failure is an ``Error``."""
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    moment = {"type": ["string", "null"], "format": "date-time"}
    faults = {"type": "array", "items": reference("Fault")}
    return {
        "Answer": {
            "type": "object",
            "properties": {
                "predictions": {
                    "description": "Null for a row that was left out.",
                    "type": "array",
                    "items": {"anyOf": [reference("Prediction"), {"type": "null"}]},
                },
                "model_version": text,
                "faults": {"description": "Why rows were left out, if any were.", **faults},
            },
            "required": ["predictions", "model_version"],
        },
        "Prediction": _object(
            {
                "prediction": {"type": "string", "enum": list(spec.target.classes)},
                "confidence": {"description": "The probability of the prediction.", **share},
                "probabilities": _object(dict.fromkeys(spec.target.classes, share)),
                "event_id": {"description": "The name of this row, for its label.", **text},
            }
        ),
        "Error": _object({"error": text, "faults": faults}),
        "Fault": {
            "type": "object",
            "properties": {
                "row": {"description": "Counted from 0.", **count},
                "column": text,
                "reason": text,
            },
            "required": ["reason"],
        },
        "Version": _object({"endpoint": text, "version": text, "since": moment}),
        "Health": {
            "type": "object",
            "properties": {
                "status": {"type": "string", "enum": ["starting", "ready"]},
                "endpoint": text,
                "version": {"type": ["string", "null"]},
                "since": moment,
            },
            "required": ["status", "endpoint", "version", "since"],
        },
        "Empty": {"type": "object"},
        "Document": {"type": "object"},
    }


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def reference(schema: str) -> Schema:
    """Points to the component called `schema`."""
    return {"$ref": f"#/components/schemas/{schema}"}
