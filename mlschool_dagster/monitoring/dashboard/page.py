"""The dashboard as one HTML page, which needs nothing from elsewhere and loads nothing."""

from datetime import timedelta
from pathlib import Path

from markupsafe import Markup

from mlschool_dagster.monitoring.dashboard import figures, health
from mlschool_dagster.monitoring.dashboard.data import (
    MINIMUM_ROWS,
    POOLED_WINDOWS,
    DashboardData,
)
from mlschool_dagster.monitoring.pages import render, script_json, write_page

FIGURES = (
    figures.accuracies,
    figures.accuracy,
    figures.evidence,
    figures.effects,
    figures.traffic,
    figures.faults,
    figures.segments,
    figures.labels,
)
"""Functions that draw the figures; the template has their titles, by the names of these."""
EVENTS_LISTED = 30
"""Most deployments and steps of rollouts in the table, the newest."""
RANGES = {"1 day": timedelta(days=1), "1 week": timedelta(days=7)}


def dashboard_page(data: DashboardData, plotly: str) -> str:
    """The page of `data`, with the program `plotly` in it."""
    drawn = {draw.__name__: draw(data) for draw in FIGURES} if data.windows else {}
    return render(
        "dashboard.html",
        data=data,
        health=health.health_summary(data),
        figures={name: script_json(f.to_json()) for name, f in drawn.items() if f is not None},
        events=data.events[: -EVENTS_LISTED - 1 : -1],
        ranges=_ranges(data),
        rows_drawn=figures.ROWS_DRAWN,
        evidence_lines=figures.EVIDENCE_LINES,
        pooled_windows=POOLED_WINDOWS,
        minimum_rows=MINIMUM_ROWS,
        counted=health.counted,
        minute=health.minute,
        plotly=Markup(plotly),  # noqa: S704 - a program, not data
    )


def write_dashboard(path: Path, data: DashboardData) -> None:
    """Write the page of `data` to `path`, whole or not at all."""
    from plotly.offline import get_plotlyjs

    write_page(path, dashboard_page(data, get_plotlyjs()))


def _ranges(data: DashboardData) -> dict[str, tuple[str, str]]:
    """From when to when each button shows; none if the windows last no longer than a day."""
    if not data.windows:
        return {}
    start, end = data.windows[0].start, data.windows[-1].end
    spans = {name: end - length for name, length in RANGES.items() if end - length > start}
    spans |= {"all": start} if spans else {}
    return {name: (health.minute(begin), health.minute(end)) for name, begin in spans.items()}
