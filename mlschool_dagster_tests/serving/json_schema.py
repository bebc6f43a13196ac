"""Judges values by the part of JSON Schema (2020-12) that the endpoint's document uses."""

import re
from collections.abc import Callable, Mapping
from typing import Any

ANNOTATIONS = {"description", "examples", "default", "format"}

TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def conforms(value: Any, schema: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether `value` is valid by `schema`, whose references are looked up in `document`."""
    return all(
        RULES[keyword](value, wanted, schema, document)
        for keyword, wanted in schema.items()
        if keyword not in ANNOTATIONS
    )


def resolve(reference: str, document: Mapping[str, Any]) -> Any:
    """What `reference`, which begins with #/, points to in `document`."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _required(value: Any, wanted: Any, schema: Any, document: Any) -> bool:
    return not isinstance(value, dict) or set(wanted) <= value.keys()


def _additional(value: Any, wanted: Any, schema: Any, document: Any) -> bool:
    if not isinstance(value, dict):
        return True
    others = [value[name] for name in value.keys() - schema["properties"].keys()]
    if wanted is False:
        return not others
    return all(conforms(other, wanted, document) for other in others)


def _properties(value: Any, wanted: Any, schema: Any, document: Any) -> bool:
    return not isinstance(value, dict) or all(
        conforms(value[name], rule, document) for name, rule in wanted.items() if name in value
    )


def _items(value: Any, wanted: Any, schema: Any, document: Any) -> bool:
    return not isinstance(value, list) or all(conforms(item, wanted, document) for item in value)


def _type(value: Any, wanted: Any, schema: Any, document: Any) -> bool:
    return any(TYPES[name](value) for name in ([wanted] if isinstance(wanted, str) else wanted))


def _number(value: Any) -> bool:
    return TYPES["number"](value)


RULES: Mapping[str, Callable[[Any, Any, Any, Any], bool]] = {
    "$ref": lambda value, wanted, _, document: conforms(value, resolve(wanted, document), document),
    "type": _type,
    "enum": lambda value, wanted, *_: any(value is w or value == w for w in wanted),
    "minimum": lambda value, wanted, *_: not _number(value) or value >= wanted,
    "maximum": lambda value, wanted, *_: not _number(value) or value <= wanted,
    "minLength": lambda value, wanted, *_: not isinstance(value, str) or len(value) >= wanted,
    "maxLength": lambda value, wanted, *_: not isinstance(value, str) or len(value) <= wanted,
    "pattern": lambda value, wanted, *_: (
        not isinstance(value, str) or re.search(wanted, value) is not None
    ),
    "minItems": lambda value, wanted, *_: not isinstance(value, list) or len(value) >= wanted,
    "maxItems": lambda value, wanted, *_: not isinstance(value, list) or len(value) <= wanted,
    "uniqueItems": lambda value, *_: not isinstance(value, list) or len({*value}) == len(value),
    "items": _items,
    "properties": _properties,
    "propertyNames": lambda value, wanted, _, document: (
        not isinstance(value, dict) or all(conforms(name, wanted, document) for name in value)
    ),
    "required": _required,
    "additionalProperties": _additional,
    "not": lambda value, wanted, _, document: not conforms(value, wanted, document),
    "anyOf": lambda value, wanted, _, doc: any(conforms(value, rule, doc) for rule in wanted),
    "oneOf": lambda value, wanted, _, doc: sum(conforms(value, rule, doc) for rule in wanted) == 1,
}
