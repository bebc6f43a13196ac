"""Following the traffic: each finished window is judged once, and again if captures land late."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName, MetricsHistory
from mlschool_dagster.monitoring.volume import (
    Expectation,
    Pace,
    VolumeConfig,
    expectation,
    longest_pause,
    pace,
    usual_silence,
)

if TYPE_CHECKING:
    from mlschool_dagster.capture.store import CaptureStore

REPORT = "traffic_volume"
SPAN = 48
"""How many finished windows are looked at; captures that land in older ones change nothing here."""

_HOUR = timedelta(hours=1)
_NO_TRAFFIC = Pace(rows=0, rate=0.0, silence=LENGTH)

Recorded = dict[MetricName, Metric]
"""What is recorded of one window, by name."""


class Volume(StrEnum):
    """What a finished window's volume is called."""

    USUAL = "as usual"
    LESS = "less than usual"
    MORE = "more than usual"
    OUTAGE = "outage"
    ALL_REFUSED = "all refused"
    UNKNOWN = "not enough history"


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the traffic has shown.

    ``windows`` are the finished windows of the span, oldest first; ``news`` those of them of which
    it has found something else than was known; ``rows_now`` is how many captures the present,
    unfinished hour has so far. ``silence`` is the time since the last capture, None if there never
    was one; ``pause`` how long it may be, None if too little is known. ``tokens`` tells the next
    look which captures this one has seen.
    """

    windows: dict[Window, Recorded]
    news: tuple[Window, ...]
    rows_now: int
    silence: timedelta | None
    pause: timedelta | None
    tokens: dict[str, str]

    @property
    def is_fresh(self) -> bool:
        """Whether traffic pauses no longer than it usually does, as far as that is known."""
        return self.silence is None or self.pause is None or self.silence <= self.pause

    @property
    def findings(self) -> list[Metric]:
        """The unusual rows of what is new, and of the newest window, oldest first."""
        told = {*self.news, *list(self.windows)[-1:]}
        rows = [self.windows[window][MetricName.ROWS] for window in sorted(told)]
        return [metric for metric in rows if metric.finding]


def look(
    store: "CaptureStore",
    history: MetricsHistory,
    tokens: Mapping[str, str],
    now: datetime,
    config: VolumeConfig,
) -> Look:
    """Judge the windows that have finished or changed since the look that left `tokens` behind.

    What is found is recorded in `history`. Looking again at the same finds and changes nothing.

    Raises:
        UserError: the store or the history cannot be used.
    """
    current = Window.of(now)
    span = [Window(current.start - LENGTH * back) for back in range(SPAN, 0, -1)]
    # What a clock that was ahead captured is no sign of life, nor one that was never set the start.
    served = {window for window in store.newest_windows() if window <= current}
    known = _recorded(history, Window(span[0].start - config.horizon), span[-1])
    present = {window.key: store.captures_token(window) for window in span if window in served}
    beginning = min([*served.intersection(span), *known], default=current)
    news = []
    for window in span:
        if window in served:
            if window in known and tokens.get(window.key) == present[window.key]:
                continue
            seen, refused = pace(window, store.stream(window)), 0
        else:
            seen, refused = _NO_TRAFFIC, sum(store.refusals(window).values())
        if window < beginning and not refused:
            continue
        found = _judged(window, seen, expectation(window, _rates(known), config), refused)
        if found != known.get(window):
            history.record(window, REPORT, found.values())
            known[window] = found
            news.append(window)
    last = store.last_captured(max(served)) if served else None
    usual = usual_silence(_silences(known), now, config)
    return Look(
        windows={window: known[window] for window in span if window in known},
        news=tuple(news),
        rows_now=store.count(current),
        silence=None if last is None else now - last,
        pause=None if usual is None else longest_pause(usual, config),
        tokens=present,
    )


def volume(rows: Metric) -> Volume:
    """What to call a window by its recorded `rows`."""
    if not rows.finding:
        return Volume.UNKNOWN if rows.lower is None else Volume.USUAL
    if rows.value:
        return Volume.LESS if rows.lower is not None and rows.value < rows.lower else Volume.MORE
    return Volume.OUTAGE if rows.lower else Volume.ALL_REFUSED


def _recorded(history: MetricsHistory, since: Window, until: Window) -> dict[Window, Recorded]:
    names = (MetricName.ROWS, MetricName.ROW_RATE, MetricName.SILENCE)
    known: dict[Window, Recorded] = {}
    for metric in history.read(names, since=since, until=until):
        known.setdefault(metric.window, {})[metric.name] = metric
    return known


def _judged(window: Window, seen: Pace, expected: Expectation | None, refused: int) -> Recorded:
    lower, upper = (expected.lower, expected.upper) if expected else (None, None)
    unusual = expected is not None and not expected.lower <= seen.rate <= expected.upper
    finding = unusual or bool(refused)
    captured = seen.rows / seen.rate if seen.rows else 1.0
    metrics = (
        Metric(
            window,
            MetricName.ROWS,
            float(seen.rows),
            seen.rows,
            lower=None if lower is None else lower * captured,
            upper=None if upper is None else upper * captured,
            finding=finding,
        ),
        Metric(
            window,
            MetricName.ROW_RATE,
            seen.rate,
            seen.rows,
            lower=lower,
            upper=upper,
            finding=finding,
        ),
        Metric(window, MetricName.SILENCE, seen.silence / _HOUR, seen.rows),
    )
    return {metric.name: metric for metric in metrics}


def _rates(known: Mapping[Window, Recorded]) -> dict[Window, float]:
    return {window: _value(found[MetricName.ROW_RATE]) for window, found in _lessons(known)}


def _silences(known: Mapping[Window, Recorded]) -> dict[Window, timedelta]:
    return {window: _value(found[MetricName.SILENCE]) * _HOUR for window, found in _lessons(known)}


def _lessons(known: Mapping[Window, Recorded]) -> list[tuple[Window, Recorded]]:
    """The windows that one can learn from: all but outages."""
    return [
        (window, found)
        for window, found in known.items()
        if found[MetricName.ROWS].value or not found[MetricName.ROWS].finding
    ]


def _value(metric: Metric) -> float:
    return metric.value or 0.0
