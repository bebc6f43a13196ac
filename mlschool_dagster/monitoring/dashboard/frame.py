"""What all figures share, as Plotly's own JSON: the time axis, marks of deployments, bands.

Text that Plotly shows may carry tags; whatever comes from data is escaped here. Colours of text and
lines are left to the page, which knows whether it is light or dark.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.modeling.figures import COLOURS
from mlschool_dagster.monitoring.dashboard.board import Board, Event, Term
from mlschool_dagster.monitoring.metrics import Metric

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
MANY = 100
"""More values than that are drawn with small points."""
WRAPPED_AT, WRAPPED_LINES = 60, 6


@dataclass(frozen=True, slots=True)
class Panel:
    """A vertical part of a figure, from ``bottom`` to ``top`` in [0, 1], with its y axis."""

    title: str
    bottom: float = 0.0
    top: float = 1.0
    axis: tuple[tuple[str, Any], ...] = ()


def over_windows(
    board: Board, traces: Sequence[Trace], panels: Sequence[Panel], shapes: Sequence[Any] = ()
) -> Figure:
    """A figure of `traces` over time, with deployments marked; trace y axes count the `panels`."""
    layout: dict[str, Any] = {
        "meta": {"over": "windows"},
        "margin": {"l": LEFT_MARGIN, "r": 24, "t": 40, "b": 36},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        "xaxis": {"type": "date", "anchor": f"y{len(panels) if len(panels) > 1 else ''}"},
        "shapes": [*_tints(board), *_marks(board), *shapes],
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


def bars(series: Sequence[Metric], name: str, colours: str | list[str]) -> Trace:
    """A bar an hour wide for each value of `series`."""
    return {
        "type": "bar",
        "name": name,
        "x": [time(metric.window.start) for metric in series],
        "y": [number(metric.value) for metric in series],
        "width": 0.85 * LENGTH / timedelta(milliseconds=1),
        "marker": {"color": colours, "opacity": 0.75},
    }


def line(
    series: Sequence[Metric],
    name: str,
    colour: str,
    *,
    width: float = 1.8,
    log: bool = False,
    **more: Any,
) -> Trace:
    """A line through `series`, broken where there is no value and where windows are missing."""
    known = _with_gaps(series)
    values = [None if metric is None else metric.value for _, metric in known]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(name),
        "x": [time(instant) for instant, _ in known],
        "y": [_positive(value) if log else number(value) for value in values],
        "line": {"color": colour, "width": width},
        "marker": {"size": 3 if len(known) > MANY else 6, "color": colour},
        "connectgaps": False,
        "customdata": [_basis(metric) for _, metric in known],
        "hovertemplate": "%{y}%{customdata}",
        **more,
    }


def findings(series: Sequence[Metric], name: str, *, log: bool = False, **more: Any) -> Trace:
    """A red point on each value that is a finding."""
    found = [metric for metric in series if metric.finding and metric.value is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": text(name),
        "x": [time(metric.window.start) for metric in found],
        "y": [_positive(m.value) if log else number(m.value) for m in found],
        "marker": {"size": 5 if len(series) > MANY else 8, "color": RED},
        "hoverinfo": "skip",
        **more,
    }


def threshold(series: Sequence[Metric], name: str, *, log: bool = False, **more: Any) -> Trace:
    """What the values were held against, as a dashed step."""
    known = [metric for metric in series if metric.threshold is not None]
    steps = [(metric.window.start, metric.threshold) for metric in known]
    steps += [(metric.window.end, metric.threshold) for metric in known[-1:]]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [time(at) for at, _ in steps],
        "y": [_positive(value) if log else number(value) for _, value in steps],
        "line": {"color": RED, "width": 1.2, "dash": "dash", "shape": "hv"},
        **more,
    }


def band(series: Sequence[Metric], name: str, colour: str, **more: Any) -> Trace:
    """The area between lower and upper of `series`; stretches without a gap are drawn as one."""
    xs: list[str | None] = []
    ys: list[float | None] = []
    for stretch in _stretches(series):
        there = [(metric.window.start, metric.upper) for metric in stretch]
        back = [(metric.window.start, metric.lower) for metric in reversed(stretch)]
        half = LENGTH / 2 if len(stretch) == 1 else timedelta(0)
        corners = [(at - half, y) for at, y in there] + [(at + half, y) for at, y in there if half]
        corners += [(at + half, y) for at, y in back] + [(at - half, y) for at, y in back if half]
        xs += [*(time(at) for at, _ in corners), None]
        ys += [*(number(y) for _, y in corners), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "name": name,
        "x": xs,
        "y": ys,
        "line": {"width": 0},
        "fillcolor": colour,
        "hoverinfo": "skip",
        **more,
    }


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


def _basis(metric: Metric | None) -> str:
    """The interval of a value, if it has one, and on how many rows it rests."""
    if metric is None:
        return ""
    interval = ""
    if metric.lower is not None and metric.upper is not None:
        interval = f" ({metric.lower:.3f} to {metric.upper:.3f})"
    return f"{interval}, {metric.rows:,} rows"


def _positive(value: float | None) -> float | None:
    """A value that a logarithmic axis can show; beyond its ends all look alike."""
    return None if value is None or math.isnan(value) else number(min(max(value, 1e-3), 1e9))


def _with_gaps(series: Iterable[Metric]) -> list[tuple[datetime, Metric | None]]:
    by_start = {metric.window.start: metric for metric in series}
    instants = with_gaps([Window(start) for start in by_start])
    return [(instant, by_start.get(instant)) for instant in instants]


def _stretches(series: Iterable[Metric]) -> list[list[Metric]]:
    stretches: list[list[Metric]] = []
    for metric in series:
        if metric.lower is None or metric.upper is None:
            continue
        if not stretches or stretches[-1][-1].window.end != metric.window.start:
            stretches.append([])
        stretches[-1].append(metric)
    return stretches


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
