"""The figures of the page, each as Plotly's own JSON, or None where there is nothing to draw."""

import math
from collections.abc import Sequence
from typing import Any

from mlschool_dagster.modeling.figures import COLOURS
from mlschool_dagster.monitoring.dashboard.board import ALL_COLUMNS, PROMOTION, Board, Event
from mlschool_dagster.monitoring.dashboard.frame import (
    BLUE,
    BLUE_BAND,
    EXPECTED,
    GREEN,
    GREEN_BAND,
    GREY,
    LEFT_MARGIN,
    RED,
    Figure,
    Panel,
    Trace,
    named_rows,
    number,
    over_windows,
    text,
    time,
    told_of,
)
from mlschool_dagster.monitoring.dashboard.segments import overall, worst_first
from mlschool_dagster.monitoring.dashboard.traces import band, bars, findings, line, threshold
from mlschool_dagster.monitoring.metrics import Metric, MetricName

SHARE = (("tickformat", ".0%"), ("hoverformat", ".3f"))
EVIDENT_COLUMNS = 4
"""How many columns' evidence is drawn at once; the legend shows the others."""
SEGMENTS_DRAWN = 16
TICKS = 5
LANES = (PROMOTION, "candidate", "shadow", "canary", "primary")


def accuracy(board: Board) -> Figure | None:
    """Estimated accuracy with its interval, and the realised one as far as labels have come."""
    estimated = board.series(MetricName.ESTIMATED_ACCURACY)
    realised = board.series(MetricName.REALISED_ACCURACY)
    if not estimated and not realised:
        return None
    held_against = threshold(realised or estimated, "threshold")
    return over_windows(
        board,
        [
            band(realised, "95 % interval of the realised", GREEN_BAND),
            line(realised, "realised, from labels", GREEN, width=1.0),
            band(estimated, "95 % interval of the estimate", BLUE_BAND),
            line(estimated, "estimated, without labels", BLUE),
            findings([*estimated, *realised], "below the threshold"),
            held_against,
        ],
        [Panel("accuracy", axis=SHARE)],
    )


def evidence(board: Board) -> Figure | None:
    """The evidence for drift gathered over all windows up to each, and what it must exceed."""
    together = board.series(MetricName.DRIFT_EVIDENCE)
    by_column = {
        column: board.series(MetricName.DRIFT_EVIDENCE, column)
        for column in board.columns(MetricName.DRIFT_EVIDENCE)
    }
    if not together and not by_column:
        return None
    strongest = sorted(by_column, key=lambda column: -_largest(by_column[column]))
    traces = [line(together, ALL_COLUMNS, BLUE, log=True)] if together else []
    traces += [
        {
            **line(by_column[column], column, COLOURS[2 + index % 5], log=True, width=1.0),
            "visible": True if index < EVIDENT_COLUMNS else "legendonly",
        }
        for index, column in enumerate(strongest)
    ]
    traces.append(findings(together, "confirmed", log=True))
    needed = threshold(together or by_column[strongest[0]], "needed to confirm", log=True)
    traces.append(needed)
    return over_windows(board, traces, [Panel("evidence for drift", axis=_powers(traces))])


def traffic(board: Board) -> Figure | None:
    """Captured rows with what was to be expected, and the share of requests refused."""
    rows = board.series(MetricName.ROWS)
    refused = board.series(MetricName.REFUSED_SHARE)
    if not rows and not refused:
        return None
    colours = [RED if metric.finding else BLUE for metric in rows]
    return over_windows(
        board,
        [
            band(rows, "expected", EXPECTED),
            bars(rows, "captured rows", colours),
            findings(rows, "not as expected"),
            line(refused, "refused share", COLOURS[5], yaxis="y2"),
            findings(refused, "too many refused", yaxis="y2"),
        ],
        [
            Panel("rows", 0.38, 1.0, (("rangemode", "tozero"),)),
            Panel("refused", 0.0, 0.26, (*SHARE, ("rangemode", "tozero"), ("nticks", 4))),
        ],
    )


def segments(board: Board) -> Figure | None:
    """The error share of each segment with its interval, the worst on top."""
    ranked, everyone = worst_first(board)[:SEGMENTS_DRAWN], overall(board)
    if not ranked or everyone is None:
        return None
    worse = [segment.interval[0] > everyone.interval[1] for segment in ranked]
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [number(segment.share) for segment in ranked],
        "y": list(range(len(ranked))),
        "error_x": {
            "array": [number(s.interval[1] - s.share) for s in ranked],
            "arrayminus": [number(s.share - s.interval[0]) for s in ranked],
            "thickness": 1.4,
            "width": 4,
            "color": GREY,
        },
        "marker": {"size": 10, "color": [RED if bad else BLUE for bad in worse]},
        "customdata": [[text(f"{s.column} = {s.value}"), s.wrong, s.rows] for s in ranked],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]} of %{customdata[2]} labelled"
        " rows wrong: %{x:.1%}<extra></extra>",
        "showlegend": False,
    }
    mean = {
        "type": "line",
        "yref": "paper",
        "x0": number(everyone.share),
        "x1": number(everyone.share),
        "y0": 0,
        "y1": 1,
        "line": {"color": GREY, "width": 1.2, "dash": "dash"},
    }
    return {
        "data": [dots],
        "layout": {
            "margin": {"l": LEFT_MARGIN, "r": 24, "t": 24, "b": 40},
            "xaxis": {
                "title": {"text": "wrong predictions; dashed: all rows"},
                "tickformat": ".0%",
                "rangemode": "tozero",
                "fixedrange": True,
            },
            "yaxis": named_rows([f"{s.column} = {s.value}" for s in ranked], reverse=True),
            "shapes": [mean],
        },
    }


def labels(board: Board) -> Figure | None:
    """Which share of each window is labelled by now, and how late the labels were."""
    coverage = board.series(MetricName.LABEL_COVERAGE)
    if not any(metric.value for metric in coverage):
        return None
    delays = line(board.series(MetricName.LABEL_DELAY), "median delay", COLOURS[5], yaxis="y2")
    return over_windows(
        board,
        [bars(coverage, "labelled share", GREEN), delays],
        [
            Panel("labelled", 0.46, 1.0, (*SHARE, ("range", [0, 1]))),
            Panel("delay in hours", 0.0, 0.32, (("rangemode", "tozero"), ("nticks", 4))),
        ],
    )


def serving(board: Board) -> Figure | None:
    """Which version was the primary when, and every change and step of a promotion beside it."""
    if not board.windows or not board.terms:
        return None
    first, last = board.windows[0].start, board.windows[-1].end
    primaries: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [time(max(term.since, first)), time(min(term.until or last, last))],
            "y": [LANES.index("primary")] * 2,
            "line": {"width": 14, "color": BLUE if index % 2 else COLOURS[4]},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for index, term in enumerate(board.terms)
        if (term.until or last) > first and term.since < last
    ]
    events = [event for event in (*board.changes, *board.promotions) if first <= event.at < last]
    figure = over_windows(board, [*primaries, _happened(events)], [Panel("")])
    figure["layout"]["yaxis"] |= named_rows(list(LANES), reverse=False)
    figure["layout"]["hovermode"] = "closest"
    return figure


def _happened(events: Sequence[Event]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [time(event.at) for event in events],
        "y": [LANES.index(event.lane) for event in events],
        "marker": {
            "size": 11,
            "symbol": "diamond",
            "color": [RED if event.lane == PROMOTION else GREEN for event in events],
        },
        "customdata": [told_of(event) for event in events],
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": False,
    }


def _powers(traces: Sequence[Trace]) -> tuple[tuple[str, Any], ...]:
    """A logarithmic axis for all of `traces`, with a few powers of ten on it."""
    values = [value for trace in traces for value in trace["y"] if value is not None]
    low = min([-1, *(math.floor(math.log10(value)) for value in values)])
    high = max([2, *(math.ceil(math.log10(value)) for value in values)])
    return (
        ("type", "log"),
        ("range", [low - 0.2, high + 0.2]),
        ("dtick", math.ceil((high - low) / TICKS)),
        ("exponentformat", "power"),
    )


def _largest(series: Sequence[Metric]) -> float:
    return max((metric.value for metric in series if metric.value is not None), default=0.0)
