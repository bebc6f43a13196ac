"""The traces that figures are made of, each one metric over the windows."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.dashboard.frame import (
    RED,
    Trace,
    number,
    text,
    time,
    with_gaps,
)
from mlschool_dagster.monitoring.metrics import Metric

MANY = 100
"""More values than that are drawn with small points."""


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
