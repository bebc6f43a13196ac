"""Maps of columns over windows: what happened where, at a glance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.dashboard.board import ALL_COLUMNS, Board
from mlschool_dagster.monitoring.dashboard.frame import (
    Figure,
    Panel,
    Trace,
    named_rows,
    number,
    over_windows,
    text,
    time,
    with_gaps,
)
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName

FAULTS = {
    MetricName.MISSING_SHARE: "missing",
    MetricName.OUT_OF_RANGE_SHARE: "out of range",
    MetricName.NEW_CATEGORY_SHARE: "new categories",
    MetricName.DUPLICATE_SHARE: "repeated",
}
WHOLE_ROWS = "whole rows"
LEAST_FAULT_SCALE = 0.05
LEAST_EFFECT_SCALE = 0.3
REDS = [[0.0, "rgba(238,102,119,0)"], [1.0, "rgba(238,102,119,1)"]]
AMBERS = [[0.0, "rgba(204,187,68,0)"], [1.0, "rgba(204,150,20,1)"]]


def effects(board: Board) -> Figure | None:
    """How far each column is from the training data, as a map of columns over windows."""
    columns = board.columns(MetricName.DRIFT_EFFECT)
    together = board.series(MetricName.DRIFT_EFFECT)
    rows = {column: board.series(MetricName.DRIFT_EFFECT, column) for column in columns}
    rows |= {ALL_COLUMNS: together} if together else {}
    if not rows:
        return None
    scale = max([LEAST_EFFECT_SCALE, *(m.value or 0 for s in rows.values() for m in s)])
    return _map(board, rows, REDS, min(1.0, scale), "effect size", _told_effect)


def faults(board: Board) -> Figure | None:
    """The largest share of faulty values per column, as a map of columns over windows."""
    rows: dict[str, list[Metric]] = {}
    for column in [*board.columns(*FAULTS), ALL]:
        worst: dict[Window, Metric] = {}
        for metric in (m for name in FAULTS for m in board.series(name, column)):
            known = worst.get(metric.window)
            if known is None or (metric.value or 0) > (known.value or 0):
                worst[metric.window] = metric
        if worst:
            rows[column or WHOLE_ROWS] = [worst[window] for window in sorted(worst)]
    if not rows:
        return None
    scale = max([LEAST_FAULT_SCALE, *(m.value or 0 for s in rows.values() for m in s)])
    return _map(board, rows, AMBERS, scale, "faulty values", _told_fault)


def _map(
    board: Board,
    rows: Mapping[str, Sequence[Metric]],
    scale: list[list[Any]],
    most: float,
    title: str,
    told: Callable[[Metric], str],
) -> Figure:
    """A heat map of `rows` over the windows, with a dot on each value that is a finding."""
    # Plotly gathers from its neighbours how wide a column is, so the first and the last have some.
    first, last = board.windows[0], board.windows[-1]
    instants = [first.start - LENGTH, *with_gaps(board.windows), last.end]
    at = {instant: index for index, instant in enumerate(instants)}
    values: list[list[float | None]] = [[None] * len(instants) for _ in rows]
    texts = [[""] * len(instants) for _ in rows]
    dots: list[tuple[str, int]] = []
    for row, (column, series) in enumerate(rows.items()):
        for metric in series:
            index = at[metric.window.start]
            values[row][index] = number(metric.value)
            texts[row][index] = text(column) + "<br>" + told(metric)
            if metric.finding:
                dots.append((time(metric.window.start), row))
    heat: Trace = {
        "type": "heatmap",
        "x": [time(instant) for instant in instants],
        "y": list(range(len(rows))),
        "z": values,
        "zmin": 0,
        "zmax": most,
        "colorscale": scale,
        "text": texts,
        "hovertemplate": "%{x|%Y-%m-%d %H:%M}<br>%{text}<extra></extra>",
        "hoverongaps": False,
        "ygap": 2,
        "colorbar": {
            "title": {"text": title, "side": "top"},
            "orientation": "h",
            "thickness": 8,
            "len": 0.25,
            "x": 1,
            "xanchor": "right",
            "y": -0.2,
            "yanchor": "top",
        },
    }
    marks: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in dots],
        "y": [y for _, y in dots],
        "marker": {"size": 4, "color": "#fff", "line": {"color": "#333", "width": 0.8}},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    figure = over_windows(board, [heat, marks], [Panel("")])
    figure["layout"]["yaxis"] |= named_rows(list(rows), reverse=True)
    figure["layout"]["hovermode"] = "closest"
    return figure


def _told_effect(metric: Metric) -> str:
    verdict = "drifted" if metric.finding else "not drifted"
    return (
        f"effect {metric.value:.3f}, {verdict}" if metric.value is not None else "not enough data"
    )


def _told_fault(metric: Metric) -> str:
    share = metric.value or 0.0
    return f"{100 * share:.2f} % {FAULTS[metric.name]}"
