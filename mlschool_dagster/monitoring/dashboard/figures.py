"""The figures of the page, or None where there is nothing to draw.

Plotly reads tags in texts; whatever comes from data is escaped here. Colours of texts and lines
are left to the page, which knows whether it is day or night. The x of a value is the start of its
window; Plotly draws it in the middle of the hour.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any

import plotly.graph_objects as go  # noqa: TID253 - nothing imports this module but the page

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.dataset.spec import TOGETHER
from mlschool_dagster.modeling.figures import COLOURS
from mlschool_dagster.monitoring.dashboard.data import DashboardData, overall, worst_first
from mlschool_dagster.monitoring.dashboard.health import minute, percent
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName

BLUE, RED, PURPLE, GREY = COLOURS[0], COLOURS[1], COLOURS[5], COLOURS[6]
GREEN = "#3a9f57"  # of the same scheme, but bright enough for a dark page
BLUE_BAND, GREEN_BAND = "rgba(68,119,170,0.25)", "rgba(58,159,87,0.18)"
EXPECTED = "rgba(187,187,187,0.28)"
REDS = [[0, "rgba(238,102,119,0)"], [1, "rgba(238,102,119,1)"]]
AMBERS = [[0, "rgba(204,150,20,0)"], [1, "rgba(204,150,20,1)"]]

LEFT, RIGHT, TOP, BOTTOM, LEGEND = 150, 16, 28, 42, 42
"""Margins in pixels; the same for all figures, so that their windows stand below each other."""
ROW_HEIGHT = 26
"""Pixels of a row of a heatmap, or of intervals."""
ROWS_DRAWN = 20
"""Most columns of a heatmap, and most segments."""
EVIDENCE_LINES = 4
"""Columns whose evidence is drawn, the strongest."""
FEW_WINDOWS, MANY_WINDOWS = 6, 100
"""Few windows have a tick and cells with numbers; the lines of many have no markers."""
MARKS = 40
"""Most deployments that are marked, the newest."""
NAME_HALF, WRAPPED_AT, WRAPPED_LINES = 10, 60, 6
SHARE = {"tickformat": ".0%", "hoverformat": ".1%"}
ABOVE_ZERO = {"rangemode": "tozero"}
HOUR = LENGTH / timedelta(milliseconds=1)
HOURLY = {"xperiod": HOUR, "xperiodalignment": "middle"}

FAULTS = {
    MetricName.MISSING_SHARE: "missing",
    MetricName.OUT_OF_RANGE_SHARE: "out of range",
    MetricName.NEW_CATEGORY_SHARE: "new categories",
    MetricName.DUPLICATE_SHARE: "repeated",
}
SMALLEST_FAULT_SCALE, SMALLEST_EFFECT_SCALE = 0.05, 0.3


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its 95 % interval, as one row of a figure; ``basis`` is what it rests on."""

    name: str
    value: float
    lower: float | None
    upper: float | None
    colour: str
    basis: str


def accuracies(data: DashboardData) -> go.Figure | None:
    """The newest measured accuracy beside what its confidence and cross-validation promised."""
    measured = data.newest(MetricName.REALISED_ACCURACY)
    if measured is None:
        return None
    kinds = (
        ("measured", GREEN, MetricName.REALISED_ACCURACY),
        ("estimated", BLUE, MetricName.ESTIMATE_OF_LABELLED),
        ("cross-validated", PURPLE, MetricName.CROSS_VALIDATED_ACCURACY),
    )
    rows = [
        Interval(kind, metric.value, metric.lower, metric.upper, colour, f"{metric.rows:,} rows")
        for kind, colour, name in kinds
        for metric in data.series(name)
        if metric.window == measured.window and metric.value is not None
    ]
    return _intervals(rows, measured.threshold, "threshold")


def accuracy(data: DashboardData) -> go.Figure | None:
    """Estimated and measured accuracy over the windows, with their 95 % intervals."""
    estimated = data.series(MetricName.ESTIMATED_ACCURACY)
    measured = data.series(MetricName.REALISED_ACCURACY)
    traces = [
        _band(measured, GREEN_BAND),
        _line(measured, "measured", GREEN),
        _band(estimated, BLUE_BAND),
        _line(estimated, "estimated", BLUE),
        _marked([*estimated, *measured], "below the threshold"),
        _threshold(measured or estimated),
    ]
    return _over_windows(data, traces, {"accuracy": SHARE})


def evidence(data: DashboardData) -> go.Figure | None:
    """The evidence for drift gathered up to each window, against what confirms it."""
    series = data.by_column(MetricName.DRIFT_EVIDENCE)
    together = series.pop(ALL, [])
    strongest = sorted(series, key=lambda column: -_largest(series[column]))[:EVIDENCE_LINES]
    lines = [_line(together, TOGETHER, BLUE)] if together else []
    lines += [_line(series[c], _short(c), COLOURS[2 + i]) for i, c in enumerate(strongest)]
    lines += [_marked(together, "confirmed"), _threshold(together)]
    for trace in lines:
        # What a logarithmic axis can show; beyond its ends all values are drawn alike.
        trace.y = [None if value is None else min(max(value, 1e-3), 1e9) for value in trace.y]
    powers = [math.log10(value) for trace in lines for value in trace.y if value is not None]
    low, high = math.floor(min([-1, *powers])), math.ceil(max([2, *powers]))
    ticks = {"dtick": math.ceil((high - low) / 5), "exponentformat": "power"}
    axis = {"type": "log", "range": [low - 0.2, high + 0.2], **ticks}
    return _over_windows(data, lines, {"evidence": axis})


def effects(data: DashboardData) -> go.Figure | None:
    """How far each column is from the training data: a heatmap of columns over windows."""

    def describe(metric: Metric) -> str:
        if metric.value is None:
            return "not enough data"
        return f"effect {metric.value:.3f}, {'drifted' if metric.finding else 'not drifted'}"

    rows = data.by_column(MetricName.DRIFT_EFFECT)
    rows = {column or TOGETHER: series for column, series in rows.items()}
    scale = min(1.0, max([SMALLEST_EFFECT_SCALE, *map(_largest, rows.values())]))
    return _heatmap(data, rows, REDS, scale, ".2f", describe)


def faults(data: DashboardData) -> go.Figure | None:
    """The largest share of faulty values: a heatmap of columns over windows."""
    rows: dict[str, list[Metric]] = {}
    for column, metrics in data.by_column(*FAULTS).items():
        worst: dict[Window, Metric] = {}
        for metric in sorted(metrics, key=lambda metric: metric.value or 0):
            worst[metric.window] = metric
        rows[column or "whole rows"] = [worst[window] for window in sorted(worst)]
    scale = max([SMALLEST_FAULT_SCALE, *map(_largest, rows.values())])
    return _heatmap(
        data, rows, AMBERS, scale, ".1%", lambda m: f"{percent(m.value)} {FAULTS[m.name]}"
    )


def traffic(data: DashboardData) -> go.Figure | None:
    """Captured rows with what is expected, and the share of refused requests."""
    rows, refused = data.series(MetricName.ROWS), data.series(MetricName.REFUSED_SHARE)
    traces = [
        _band(rows, EXPECTED),
        _bars(rows, "captured rows", [RED if metric.finding else BLUE for metric in rows]),
        _line(refused, "refused share", PURPLE, "y2"),
        _marked(refused, "too many refused", "y2"),
    ]
    return _over_windows(data, traces, {"rows": ABOVE_ZERO, "refused": SHARE | ABOVE_ZERO})


def segments(data: DashboardData) -> go.Figure | None:
    """The error share of each segment with its interval, the worst on top."""
    ranked, everyone = worst_first(data)[:ROWS_DRAWN], overall(data)
    if not ranked or everyone is None:
        return None
    rows = [
        Interval(
            segment.name,
            segment.share,
            *segment.interval,
            RED if segment.is_worse_than(everyone) else BLUE,
            f"{segment.wrong:,} of {segment.rows:,} labelled rows wrong",
        )
        for segment in ranked
    ]
    return _intervals(rows, everyone.share, everyone.name)


def labels(data: DashboardData) -> go.Figure | None:
    """Which share of each window is labelled by now, and how late the labels came."""
    coverage = data.series(MetricName.LABEL_COVERAGE)
    delay = data.series(MetricName.LABEL_DELAY)
    traces = [
        _bars([m for m in coverage if m.value], "labelled share", GREEN),
        _line(delay, "median delay", PURPLE, "y2"),
    ]
    return _over_windows(data, traces, {"labelled": SHARE | ABOVE_ZERO, "hours late": ABOVE_ZERO})


def _over_windows(
    data: DashboardData, traces: Sequence[Any], panels: Mapping[str, Mapping[str, Any]]
) -> go.Figure | None:
    """`traces` over at least two windows, deployments marked; `panels` are y axes by title."""
    if len(data.windows) < 2 or not any(len(trace.x) for trace in traces):
        return None
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    figure = _figure(traces, height=300 if len(panels) == 1 else 380, margin_b=BOTTOM + LEGEND)
    figure.update_layout(hovermode="x unified", legend=legend, **_time_axis(data))
    spans = [[0, 1]] if len(panels) == 1 else [[0.42, 1], [0, 0.3]]
    for index, (title, scale) in enumerate(panels.items()):
        axis = {"title": {"text": title}, "domain": spans[index], "fixedrange": True, **scale}
        figure.update_layout({f"yaxis{index + 1 if index else ''}": axis})
    return figure.update_xaxes(anchor="y" if len(panels) == 1 else "y2")


def _figure(traces: Any, height: int, margin_b: int = BOTTOM) -> go.Figure:
    margin = {"l": LEFT, "r": RIGHT, "t": TOP, "b": margin_b}
    layout = {"template": "none", "height": height, "margin": margin, "hovermode": "closest"}
    return go.Figure(traces, layout)


def _time_axis(data: DashboardData) -> dict[str, Any]:
    """The layout over the windows; a single window stands in the middle of three hours."""
    first, last = data.windows[0], data.windows[-1]
    pad = LENGTH if first == last else timedelta(0)
    span = [minute(first.start - pad), minute(last.end + pad)]
    axis: dict[str, Any] = {"type": "date", "range": span, "hoverformat": "%Y-%m-%d %H:%M"}
    if len(data.windows) <= FEW_WINDOWS:
        axis["tickvals"] = [_middle(window) for window in data.windows]
        axis["ticktext"] = [f"{w.start:%H:%M}<br>{w.start:%b} {w.start.day}" for w in data.windows]
    return {"meta": {"over": "windows"}, "xaxis": axis, **_deployments(data)}


def _deployments(data: DashboardData) -> dict[str, list[dict[str, Any]]]:
    """A labelled line where a version became the primary, as shapes and annotations."""
    first, last = data.windows[0].start, data.windows[-1].end
    events = {event.at: event for event in data.events if event.subject == "primary"}
    marks: dict[str, list[dict[str, Any]]] = {"shapes": [], "annotations": []}
    # Labels nearer to each other than a twentieth of the width would overlap; the newest stay.
    labelled = last + (last - first)
    for period in reversed(data.periods[-MARKS:]):
        if not first <= period.since < last:
            continue
        at, line = minute(period.since), {"color": GREY, "width": 1, "dash": "dot"}
        place = {"yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at}
        marks["shapes"].append({"type": "line", "line": line, **place})
        if labelled - period.since >= (last - first) / 20:
            labelled = period.since
            lines = [f"version {period.version} deployed", f"{at} UTC"]
            if (event := events.get(period.since)) is not None:
                lines += textwrap.wrap(f"by {event.by}: {event.why}", WRAPPED_AT)[:WRAPPED_LINES]
            place = {"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
            hover = "<br>".join(map(_text, lines))
            marks["annotations"].append(
                {**place, "text": f"v{_short(period.version)}", "hovertext": hover}
            )
    return marks


def _points(series: Sequence[Metric]) -> dict[str, Any]:
    return {
        "x": [minute(metric.window.start) for metric in series],
        "y": [_number(metric.value) for metric in series],
        **HOURLY,
    }


def _line(series: Sequence[Metric], name: str, colour: str, yaxis: str = "y") -> go.Scatter:
    """A line through `series`, broken where there is no value and where windows are missing."""
    known = {metric.window.start: metric for metric in series}
    points = [(instant, known.get(instant)) for instant in _with_gaps(list(known))]
    return go.Scatter(
        name=name,
        x=[minute(instant) for instant, _ in points],
        y=[None if metric is None else _number(metric.value) for _, metric in points],
        **HOURLY,
        mode="lines" if len(points) > MANY_WINDOWS else "lines+markers",
        line={"color": colour, "width": 1.6},
        customdata=[_basis(metric) for _, metric in points],
        hovertemplate="%{y}%{customdata}",
        yaxis=yaxis,
    )


def _marked(series: Sequence[Metric], name: str, yaxis: str = "y") -> go.Scatter:
    """A red point on each value that is a finding."""
    findings = [metric for metric in series if metric.finding and metric.value is not None]
    marker = {"size": 5 if len(series) > MANY_WINDOWS else 8, "color": RED}
    shown = {"name": name, "mode": "markers", "marker": marker, "showlegend": bool(findings)}
    return go.Scatter(**_points(findings), **shown, hoverinfo="skip", yaxis=yaxis)


def _threshold(series: Sequence[Metric]) -> go.Scatter:
    """The threshold of `series`, as a dashed step."""
    known = [metric for metric in series if metric.threshold is not None]
    steps = [(metric.window.start, metric.threshold) for metric in known]
    steps += [(metric.window.end, metric.threshold) for metric in known[-1:]]
    x, y = [minute(at) for at, _ in steps], [_number(value) for _, value in steps]
    line = {"color": RED, "width": 1.2, "dash": "dash", "shape": "hv"}
    return go.Scatter(name="threshold", x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _bars(series: Sequence[Metric], name: str, colours: str | list[str]) -> go.Bar:
    marker = {"color": colours, "opacity": 0.8}
    return go.Bar(**_points(series), name=name, width=0.85 * HOUR, marker=marker)


def _band(series: Iterable[Metric], colour: str) -> go.Scatter:
    """The area between lower and upper of `series`, broken where windows are missing."""
    stretches: list[list[Metric]] = []
    for metric in series:
        if metric.lower is not None and metric.upper is not None:
            if not stretches or stretches[-1][-1].window.end != metric.window.start:
                stretches.append([])
            stretches[-1].append(metric)
    xs: list[str | None] = []
    ys: list[float | None] = []
    for stretch in stretches:
        # From the beginning of the first hour to the end of the last one, and back.
        ends = [stretch[0], *stretch, stretch[-1]]
        middles = [_middle(metric.window) for metric in stretch]
        x = [minute(stretch[0].window.start), *middles, minute(stretch[-1].window.end)]
        xs += [*x, *reversed(x), None]
        ys += [*(_number(m.upper) for m in ends), *(_number(m.lower) for m in reversed(ends)), None]
    shown = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": colour}
    return go.Scatter(x=xs, y=ys, **shown, hoverinfo="skip", showlegend=False)


def _heatmap(
    data: DashboardData,
    rows: Mapping[str, Sequence[Metric]],
    colours: list[list[Any]],
    largest: float,
    number_format: str,
    describe: Callable[[Metric], str],
) -> go.Figure | None:
    """A heatmap of `rows` over the windows, the largest values on top, findings dotted."""
    if not rows:
        return None
    names = sorted(rows, key=lambda name: -_largest(rows[name]))[:ROWS_DRAWN]
    # Plotly takes the width of a cell from its neighbours; the first and the last get one, too.
    starts = [window.start for window in data.windows]
    instants = [starts[0] - LENGTH, *_with_gaps(starts), starts[-1] + LENGTH]
    column = {instant: index for index, instant in enumerate(instants)}
    values: list[list[float | None]] = [[None] * len(instants) for _ in names]
    texts = [[""] * len(instants) for _ in names]
    for row, name in enumerate(names):
        for metric in rows[name]:
            index = column[metric.window.start]
            values[row][index] = _number(metric.value)
            texts[row][index] = f"{_text(name)}<br>{describe(metric)}<br>{metric.window.key}"
    few = len(data.windows) <= FEW_WINDOWS
    heat = go.Heatmap(
        x=[_middle(Window(instant)) for instant in instants],
        y=list(range(len(names))),
        z=values,
        zmin=0,
        zmax=largest,
        colorscale=colours,
        showscale=False,
        text=texts,
        texttemplate=f"%{{z:{number_format}}}" if few else None,
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        ygap=2,
        xgap=2 if few else 0,
    )
    dots = [(_middle(m.window), row) for row, n in enumerate(names) for m in rows[n] if m.finding]
    marker = {"size": 4, "color": "#fff", "line": {"color": "#333", "width": 0.8}}
    marks = go.Scatter(
        x=[x for x, _ in dots], y=[y for _, y in dots], mode="markers", marker=marker
    ).update(hoverinfo="skip", showlegend=False)
    figure = _figure([heat] if few else [heat, marks], ROW_HEIGHT * len(names) + TOP + BOTTOM)
    return figure.update_layout(yaxis=_named_rows(names), **_time_axis(data))


def _intervals(rows: Sequence[Interval], line: float | None, line_name: str) -> go.Figure:
    """Points with whiskers, the first of `rows` on top, and a dashed line at the share `line`."""
    above = [None if row.upper is None else _number(row.upper - row.value) for row in rows]
    below = [None if row.lower is None else _number(row.value - row.lower) for row in rows]
    points = go.Scatter(
        x=[_number(row.value) for row in rows],
        y=list(range(len(rows))),
        mode="markers",
        error_x={"array": above, "arrayminus": below, "color": GREY, "thickness": 1.6, "width": 4},
        marker={"size": 10, "color": [row.colour for row in rows]},
        text=[f"{_text(row.name)}: {row.basis}" for row in rows],
        hovertemplate="%{text}<br>%{x:.1%}<extra></extra>",
    )
    figure = _figure(points, ROW_HEIGHT * len(rows) + TOP + BOTTOM)
    figure.update_layout(
        xaxis={"tickformat": ".0%", "fixedrange": True, "nticks": 8},
        yaxis=_named_rows([row.name for row in rows]),
    )
    if line is not None and math.isfinite(line):
        dashes = {"color": GREY, "width": 1.4, "dash": "dash"}
        label = {"text": line_name, "yanchor": "bottom", "xanchor": "center"}
        figure.add_vline(_number(line), line=dashes, annotation=label)
    return figure


def _named_rows(names: Sequence[str]) -> dict[str, Any]:
    """A y axis with a name for each whole number, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [_short(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "fixedrange": True,
    }


def _with_gaps(instants: Sequence[datetime]) -> list[datetime]:
    """The window starts `instants`, and in each gap between them the hours next to it."""
    known: list[datetime] = []
    for instant in instants:
        if known and instant - known[-1] > LENGTH:
            known += [known[-1] + LENGTH, instant - LENGTH]
        known.append(instant)
    return list(dict.fromkeys(known))


def _basis(metric: Metric | None) -> str:
    """The interval of a value, if it has one, and on how many rows it rests."""
    if metric is None:
        return ""
    is_bounded = metric.lower is not None and metric.upper is not None
    interval = f" ({metric.lower:.3f} to {metric.upper:.3f})" if is_bounded else ""
    return f"{interval}, {metric.rows:,} rows"


def _largest(series: Iterable[Metric]) -> float:
    return max((_number(metric.value) or 0.0 for metric in series), default=0.0)


def _middle(window: Window) -> str:
    return minute(window.start + LENGTH / 2)


def _number(value: float | None) -> float | None:
    """A number in four digits, or None where JSON has no number for it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _text(shown: str) -> str:
    """`shown` so that Plotly shows it as it is."""
    return escape(shown, quote=False)


def _short(name: str) -> str:
    """`name`, escaped, and without its middle if it is too long for an axis."""
    if len(name) > 2 * NAME_HALF + 1:
        name = f"{name[:NAME_HALF]}\N{HORIZONTAL ELLIPSIS}{name[-NAME_HALF:]}"
    return _text(name)
