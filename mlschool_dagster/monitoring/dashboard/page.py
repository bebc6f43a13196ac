"""The dashboard as one HTML page that needs nothing from elsewhere, and reaches for nothing."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from mlschool_dagster.atomic import replacing
from mlschool_dagster.monitoring.dashboard import figures, maps
from mlschool_dagster.monitoring.dashboard.answers import Answer, State, answers, counted
from mlschool_dagster.monitoring.dashboard.board import Board, Event
from mlschool_dagster.monitoring.dashboard.frame import Figure, span, time
from mlschool_dagster.monitoring.dashboard.script import SCRIPT
from mlschool_dagster.monitoring.dashboard.segments import (
    MINIMUM_ROWS,
    POOLED_WINDOWS,
    comparisons,
    worst_first,
)
from mlschool_dagster.monitoring.dashboard.style import STYLE

EVENTS_LISTED = 30
"""Most deployments and most steps of promotions in the tables, the newest."""
RANGES = {"1 day": timedelta(days=1), "1 week": timedelta(days=7)}
# Whatever the data may hold, the browser loads nothing and sends nothing.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)
_CLASSES = {
    State.FINDING: "finding",
    State.DOUBT: "doubt",
    State.FINE: "fine",
    State.UNKNOWN: "unknown",
}

Plot = tuple[str, str, Callable[[Board], Figure | None], int]
"""What it shows, how it is read, what draws it, and its height in pixels."""

_PLOTS: dict[str, tuple[Plot, ...]] = {
    "accuracy": (
        (
            "Accuracy over windows",
            "Blue: what the model's own calibrated confidence says, before any label. Green: what "
            "labels say. Bands are 95 % intervals; red points lie below the threshold for certain.",
            figures.accuracy,
            360,
        ),
    ),
    "drift": (
        (
            "Evidence over windows",
            "Evidence gathers while windows keep differing from the training data. Above the "
            "dashed line drift is confirmed. The legend shows and hides columns.",
            figures.evidence,
            340,
        ),
        (
            "Which column drifts",
            "The redder, the farther from the training data; a dot where the window by itself "
            "counts as drifted.",
            maps.effects,
            360,
        ),
    ),
    "traffic": (
        (
            "Rows and refusals",
            "Bars are captured rows, the grey band what was to be expected; red where that was "
            "not so. Below: the share of requests that were refused.",
            figures.traffic,
            380,
        ),
    ),
    "quality": (
        (
            "Faulty values by column",
            "The largest share of values that are missing, out of range or of a new category.",
            maps.faults,
            340,
        ),
    ),
    "segments": (
        (
            "Wrong predictions by segment",
            f"The newest {POOLED_WINDOWS} windows added up, worst first, with 95 % intervals; red "
            "where the interval lies above that of all rows. Segments with fewer than "
            f"{MINIMUM_ROWS} labelled rows are left out.",
            figures.segments,
            420,
        ),
    ),
    "labels": (
        (
            "Labels",
            "How much of each window is labelled by now, and how many hours after the prediction "
            "the median label came.",
            figures.labels,
            340,
        ),
    ),
    "serving": (
        (
            "Versions and decisions",
            "Bars are the versions that answered; a diamond is a change or a decision: point at it "
            "to read who made it and why.",
            figures.serving,
            300,
        ),
    ),
}


def dashboard_page(board: Board, program: str) -> str:
    """The page of `board`, with `program` in it, Plotly's own."""
    told = answers(board)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(board.model)}: monitoring</title><style>{STYLE}</style></head><body>",
        *_heading(board, told),
        *_ranges(board),
        "<main>",
        *(part for answer in told for part in _section(board, answer)),
        "</main>",
        f"<script>{program}</script><script>{SCRIPT}</script></body></html>\n",
    ]
    return "".join(parts)


def write_dashboard(path: Path, board: Board) -> None:
    """Write the page of `board` to `path`, whole or not at all."""
    from plotly.offline import get_plotlyjs

    with replacing(path) as temporary:
        temporary.write_text(dashboard_page(board, get_plotlyjs()), encoding="utf-8")


def _heading(board: Board, told: Sequence[Answer]) -> Iterator[str]:
    yield f"<header><h1>{escape(board.model)}</h1>"
    yield f'<p class="quiet">{escape(_extent(board))}</p>'
    wrong = [answer for answer in told if answer.state is State.FINDING]
    if wrong:
        yield '<p class="verdict finding">'
        yield f"Look at: {escape('; '.join(_briefly(answer) for answer in wrong))}.</p>"
    doubtful = [answer for answer in told if answer.state is State.DOUBT]
    if doubtful:
        yield '<p class="verdict doubt">'
        yield f"Keep an eye on: {escape('; '.join(_briefly(answer) for answer in doubtful))}.</p>"
    if board.windows and not wrong and not doubtful:
        yield '<p class="verdict">Nothing calls for attention.</p>'
    yield '</header><nav class="tiles" aria-label="Sections">'
    for answer in told:
        yield f'<a href="#{answer.key}" class="{_CLASSES[answer.state]}">'
        yield f"<span>{escape(answer.key)}</span><b>{escape(answer.headline)}</b>"
        yield f'<span class="state">{answer.state}</span></a>'
    yield "</nav>"


def _briefly(answer: Answer) -> str:
    return f"{answer.key} ({answer.headline})"


def _extent(board: Board) -> str:
    made = f"as of {time(board.now)} UTC"
    if not board.windows:
        return f"No window has been monitored yet, {made}."
    first, last = board.windows[0], board.windows[-1]
    return (
        f"The newest monitored windows, {counted(len(board.windows), 'hour')}: {first.key} to "
        f"{last.key} (UTC), {made}."
    )


def _ranges(board: Board) -> Iterator[str]:
    if not board.windows:
        return
    start, end = span(board)
    yield '<div class="ranges" role="group" aria-label="Windows shown">'
    yield '<span class="quiet">Show</span>'
    spans = {name: max(start, end - length) for name, length in RANGES.items()} | {"all": start}
    for name, begin in spans.items():
        pressed = str(name == "all").lower()
        yield f'<button type="button" aria-pressed="{pressed}" data-from="{time(begin)}" '
        yield f'data-until="{time(end)}">{name}</button>'
    yield '<span class="quiet">or drag in a figure; a double click shows all again.</span></div>'


def _section(board: Board, answer: Answer) -> Iterator[str]:
    yield f'<section id="{answer.key}"><h2 class="{_CLASSES[answer.state]}">'
    yield f'{escape(answer.question)} <span class="state">{answer.state}</span></h2>'
    yield f'<p class="answer">{escape(answer.text)}</p>'
    for title, reading, drawn, height in _PLOTS[answer.key]:
        figure = drawn(board)
        if figure is not None:
            yield f'<h3>{title}</h3><p class="quiet">{reading}</p>'
            yield f'<div class="plot" role="img" aria-label="{title}" style="height:{height}px">'
            yield f'<script type="application/json">{_json(figure)}</script></div>'
    if answer.key == "segments":
        yield from _fairness(board)
    if answer.key == "serving":
        yield from _events("Deployments", board.changes)
        yield from _events("Promotions", board.promotions)
    yield "</section>"


def _fairness(board: Board) -> Iterator[str]:
    rows = [
        (
            comparison.worst.column,
            f"{comparison.worst.value}: {_percent(comparison.worst.share)}",
            f"{comparison.best.value}: {_percent(comparison.best.share)}",
            f"{100 * comparison.gap:.1f} points",
            "beyond chance" if comparison.clearly else "within chance",
        )
        for comparison in comparisons(worst_first(board))
    ]
    if rows:
        yield "<h3>Fairness: errors of the worst and the best served</h3>"
        yield '<p class="quiet">Beyond chance: their 95 % intervals are apart.</p>'
        yield _table(("column", "worst", "best", "gap", "difference"), rows)


def _events(title: str, events: Sequence[Event]) -> Iterator[str]:
    if events:
        yield f"<h3>{title}</h3>"
        yield f'<p class="quiet">The newest {min(len(events), EVENTS_LISTED)} of {len(events)}.</p>'
        rows = [
            (_second(event.at), event.lane, event.what, event.version, event.by, event.why)
            for event in reversed(events[-EVENTS_LISTED:])
        ]
        yield _table(("when (UTC)", "of", "what", "version", "by", "why"), rows)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _json(figure: dict[str, Any]) -> str:
    """The figure as JSON that cannot end the element it stands in."""
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _second(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S")
