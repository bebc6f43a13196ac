"""An OpenAPI document of the endpoint as one HTML page, which needs nothing from elsewhere."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:0 auto;"
    "padding:1.5rem}"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}"
    "pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:.85rem}"
    "code{font-size:.9em}"
    ".table{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}"
    "th,td{border-bottom:1px solid #ddd;text-align:left;padding:.25rem 1rem .25rem 0;"
    "vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{background:#1b1b1b;color:#ddd}pre{background:#2a2a2a}"
    "th,td{border-color:#444}a{color:#8ab4f8}}"
)


def openapi_page(document: Mapping[str, Any]) -> str:
    """The page that shows `document`: a worked example, columns, parameters and status codes."""
    info, operation = document["info"], document["paths"]["/invocations"]["post"]
    title = escape(info["title"])
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        *(f"<p>{escape(info[part])}</p>" for part in ("summary", "description")),
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>',
        f"<h2>{escape(operation['summary'])}</h2><p>{escape(operation['description'])}</p>",
        *_worked_example(operation),
        "<h3>Columns</h3>",
        _table(("Column", "Meaning", "Takes"), _columns(document)),
        "<h3>Headers and parameters</h3>",
        _table(("Name", "In", "Meaning", "Takes"), _parameters(operation)),
        "<h3>Answers</h3>",
        _table(("Status", "Meaning"), _statuses(operation)),
        "<h2>Everything else</h2>",
        _table(("Request", "Answers with"), _others(document)),
        "</body></html>\n",
    ]
    return "".join(parts)


def _worked_example(operation: Mapping[str, Any]) -> Iterable[str]:
    content, responses = operation["requestBody"]["content"], operation["responses"]
    yield "<h3>Example</h3>"
    yield (
        "<p>ENDPOINT stands for the address of this page without its last part. Where a token is "
        'asked for, add <code>--header "Authorization: Bearer $TOKEN"</code>.</p>'
    )
    yield _code(_curl("application/json", _pretty(content["application/json"]["example"])))
    yield "<p>The answer, whose values are made up here:</p>"
    yield _code(_pretty(_example_of(responses["200"])))
    yield "<p>The same row as CSV:</p>"
    yield _code(_curl("text/csv", content["text/csv"]["example"]))
    yield "<p>A refusal (422):</p>"
    yield _code(_pretty(_example_of(responses["422"])))


def _curl(media_type: str, body: str) -> str:
    # Within a shell's single quotes only the quote itself means something.
    quoted = body.rstrip("\n").replace("'", "'\\''")
    return (
        'curl "$ENDPOINT/invocations" \\\n'
        f"  --header 'Content-Type: {media_type}' \\\n"
        f"  --data-binary '{quoted}'"
    )


def _columns(document: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for name, schema in document["components"]["schemas"]["Row"]["properties"].items():
        yield name, schema["description"], _values(schema)


def _parameters(operation: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for parameter in operation["parameters"]:
        values = _values(parameter["schema"])
        yield parameter["name"], parameter["in"], parameter["description"], values


def _statuses(operation: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for status, response in sorted(operation["responses"].items()):
        yield status, response["description"]


def _others(document: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for path, operations in document["paths"].items():
        if "get" in operations:
            yield f"GET {path}", operations["get"]["summary"]


def _values(schema: Mapping[str, Any]) -> str:
    """What `schema` takes, in words."""
    if "enum" in schema:
        return ", ".join("null" if value is None else value for value in schema["enum"])
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if "minimum" in schema:
        words = [f"{schema['minimum']:g} to {schema['maximum']:g}"]
    elif "maxLength" in schema:
        words = [f"text of at most {schema['maxLength']} characters"]
    else:
        words = ["text"]
    return ", ".join(words + ["null"] * ("null" in types))


def _example_of(response: Mapping[str, Any]) -> Any:
    return response["content"]["application/json"]["example"]


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
