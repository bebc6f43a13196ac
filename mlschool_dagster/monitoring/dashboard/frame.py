"""What all figures share, as Plotly's own JSON: the time axis, marks of deployments.

Text that Plotly shows may carry tags; whatever comes from data is escaped here. Colours of text and
lines are left to the page, which knows whether it is light or dark.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.modeling.figures import COLOURS
from mlschool_dagster.monitoring.dashboard.board import Board, Event, Term

Trace = dict[str, Any]
Figure = dict[str, Any]

BLUE, RED, GREY = COLOURS[0], COLOURS[1], COLOURS[6]
GREEN = "#3a9f57"  # of the same scheme, but bright enough for a dark page
BLUE_BAND, GREEN_BAND = "rgba(68,119,170,0.25)", "rgba(58,159,87,0.18)"
EXPECTED = "rgba(187,187,187,0.28)"
TINT = "rgba(128,128,128,0.07)"
LEFT_MARGIN = 150
"""Pixels; the same for all, so that windows stand below each other."""
MARKS = 40
"""Most deployments that are marked, the newest."""
LABEL_LENGTH = 20
LEAST_SPAN = timedelta(hours=12)
WRAPPED_AT, WRAPPED_LINES = 60, 6


@dataclass(frozen=True, slots=True)
class Panel:
    """A vertical part of a figure, from ``bottom`` to ``top`` in [0, 1], with its y axis."""

    title: str
    bottom: float = 0.0
    top: float = 1.0
    axis: tuple[tuple[str, Any], ...] = ()


def over_windows(board: Board, traces: Sequence[Trace], panels: Sequence[Panel]) -> Figure:
    """A figure of `traces` over time, with deployments marked; trace y axes count the `panels`."""
    layout: dict[str, Any] = {
        "meta": {"over": "windows"},
        "margin": {"l": LEFT_MARGIN, "r": 24, "t": 40, "b": 36},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        "xaxis": {"type": "date", "anchor": f"y{len(panels) if len(panels) > 1 else ''}"},
        "shapes": [*_tints(board), *_marks(board)],
        "annotations": _mark_labels(board),
    }
    layout["xaxis"]["range"] = [time(instant) for instant in span(board)]
    for number, panel in enumerate(panels, 1):
        layout["yaxis" if number == 1 else f"yaxis{number}"] = {
            "title": {"text": panel.title},
            "domain": [panel.bottom, panel.top],
            "fixedrange": True,
            **dict(panel.axis),
        }
    return {"data": list(traces), "layout": layout}


def span(board: Board) -> tuple[datetime, datetime]:
    """From when to when figures over the windows of `board` go."""
    end = board.windows[-1].end
    return min(board.windows[0].start - LENGTH, end - LEAST_SPAN), end


def with_gaps(windows: Sequence[Window]) -> list[datetime]:
    """The starts of `windows`, and in each gap between them the hours next to it."""
    instants: list[datetime] = []
    for window in windows:
        if instants and window.start - instants[-1] > LENGTH:
            instants += [instants[-1] + LENGTH, window.start - LENGTH]
        instants.append(window.start)
    return list(dict.fromkeys(instants))


def time(instant: datetime) -> str:
    """An instant (UTC) as Plotly reads it."""
    return instant.strftime("%Y-%m-%d %H:%M")


def number(value: float | None) -> float | None:
    """A number in four digits, as far as JSON has it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _label(text: str) -> str:
    """A short, harmless form of `text` for an axis."""
    shown = text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…"
    return escape(shown, quote=False)


def named_rows(names: list[str], *, reverse: bool) -> dict[str, Any]:
    """A y axis with a name for each whole number; reversed, the first name is on top."""
    ends = [-0.5, len(names) - 0.5]
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [_label(name) for name in names],
        "range": ends[::-1] if reverse else ends,
        "fixedrange": True,
        "showgrid": False,
    }


def text(shown: str) -> str:
    """`shown` as Plotly shows it, whatever it holds."""
    return escape(shown, quote=False)


def told_of(event: Event) -> str:
    """What happened, when, by whom and why, as a hover shows it."""
    lines = [f"version {event.version} {event.what}", f"{time(event.at)} UTC"]
    if event.by:
        lines.append(f"by {event.by}")
    lines += textwrap.wrap(event.why, WRAPPED_AT)[:WRAPPED_LINES]
    return "<br>".join(text(part) for part in lines)


def _tints(board: Board) -> list[dict[str, Any]]:
    """Every other version's time, tinted."""
    last = board.windows[-1].end
    return [
        {
            "type": "rect",
            "yref": "paper",
            "x0": time(term.since),
            "x1": time(term.until or last),
            "y0": 0,
            "y1": 1,
            "fillcolor": TINT,
            "line": {"width": 0},
            "layer": "below",
        }
        for term in board.terms[-MARKS:][::2]
        if (term.until or last) > board.windows[0].start and term.since < last
    ]


def _marks(board: Board) -> list[dict[str, Any]]:
    return [
        {
            "type": "line",
            "yref": "paper",
            "x0": time(term.since),
            "x1": time(term.since),
            "y0": 0,
            "y1": 1,
            "line": {"color": GREY, "width": 1, "dash": "dot"},
        }
        for term in _begun(board)
    ]


def _mark_labels(board: Board) -> list[dict[str, Any]]:
    told = {event.at: event for event in board.changes if event.lane == "primary"}
    labels = []
    for term in _begun(board):
        event = told.get(term.since)
        told_why = told_of(event) if event else f"version {term.version}"
        labels.append(
            {
                "x": time(term.since),
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": f"v{_label(term.version)}",
                "hovertext": told_why,
            }
        )
    return labels


def _begun(board: Board) -> list[Term]:
    """The terms that began within the windows shown."""
    first, last = board.windows[0].start, board.windows[-1].end
    return [term for term in board.terms[-MARKS:] if first <= term.since < last]
