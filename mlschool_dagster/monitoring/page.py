"""The page around a report: what it is about, what was concluded, and why nothing is drawn.

Pages are self-contained, and replaced whole or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mlschool_dagster.atomic import replacing

LONGEST_REASON = 200
"""Most letters of an error's text that are shown."""

_STYLE = (
    "#report-heading{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:72rem;"
    "margin:0 auto;padding:1.5rem}"
    "#report-heading h1{font-size:1.6rem;margin:0 0 .5rem}"
    "#report-heading dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}"
    "#report-heading dt{color:#666}#report-heading dd{margin:0}"
    "#report-heading .summary{font-size:1.15rem;font-weight:600}"
    "#report-heading .table{overflow-x:auto}"
    "#report-heading table{border-collapse:collapse;font-size:.85rem}"
    "#report-heading th,#report-heading td{border-bottom:1px solid #ddd;text-align:left;"
    "padding:.2rem .8rem .2rem 0;vertical-align:top}"
    "#report-heading td:not(:last-child){white-space:nowrap}"
)


_EMPTY_PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="UTF-8">\n</head>\n'
    "<body>\n</body>\n</html>\n"
)


def reason(error: Exception) -> str:
    """What `error` says, short enough for a sentence: its kind and the beginning of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:LONGEST_REASON]}".rstrip(": ")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a page is about, in the words its heading shows."""

    model: str
    model_version: str
    window: str
    reference: str


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above the charts; ``table`` has one mapping a row, all with the same keys."""

    title: str
    subject: Subject
    rows: str
    summary: str
    table: Sequence[dict[str, Any]]
    notes: tuple[str, ...]


def write_page(path: Path, heading: Heading, charts: str | None) -> None:
    """Writes the HTML page `charts` to `path` under `heading`; the heading alone if it is None."""
    subject = heading.subject
    title = f"{heading.title} of {subject.model} {subject.model_version}, {subject.window}"
    head = f"<head><title>{escape(title)}</title><style>{_STYLE}</style>"
    page = (charts or _EMPTY_PAGE).replace("<head>", head, 1)
    page = page.replace("<body>", f"<body>{_heading_html(heading)}", 1)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _heading_html(heading: Heading) -> str:
    subject = heading.subject
    facts = {
        "Model": f"{subject.model}, version {subject.model_version}",
        "Window": subject.window,
        "Reference": subject.reference,
        "Rows": heading.rows,
    }
    return "".join(
        [
            f'<header id="report-heading"><h1>{escape(heading.title)}</h1><dl>',
            *(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
            f'</dl><p class="summary">{escape(heading.summary)}</p>',
            _table_html(heading.table),
            *(f"<p>{escape(note)}</p>" for note in heading.notes),
            "</header>",
        ]
    )


def _table_html(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    names = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row.values())}</tr>"
        for row in rows
    )
    return f'<div class="table"><table><tr>{names}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({count})" for key, count in value.items()) or "none"
    return str(value)
