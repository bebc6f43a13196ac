"""Volume and freshness of traffic: forecast each window from those before, and detect outages.

The forecast is learned from earlier windows; there is none while they are few, or while traffic is
irregular. A window without a capture whose forecast is above zero is an outage. Outages are not
learned from, so that the next one is detected as well. Each finished window is judged once, and
again if captures land late.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.thresholds import VolumeConfig

if TYPE_CHECKING:
    from mlschool_dagster.capture.records import Columns
    from mlschool_dagster.capture.store import CaptureStore

FIELDS = "captured_at, sampling_share"
"""Columns that are read of each capture."""

DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
DAYS_NEEDED, WEEKS_NEEDED = 7, 4
"""The least windows of the same hour of the day, or of the week, to learn from."""
RECENT_WINDOWS = 48
REGULAR_SHARE = 0.8
"""Which share of comparable windows must have had traffic for it to be expected at all."""
DISPERSED_SHARE = 0.9
"""The share of windows that dispersion rests on; the others may be mishaps."""
MEDIAN_VARIANCE = math.pi / 2
"""How much more a median of normal values varies than their mean."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TrafficRate:
    """The traffic of a window.

    ``rows`` were captured; ``rate`` is rows per hour with those that sampling left out; ``silence``
    is the longest time without a capture within the window.
    """

    rows: int
    rate: float
    silence: timedelta


@dataclass(frozen=True, slots=True)
class Forecast:
    """The interval of usual rows per hour of a window, learned from `windows` comparable ones."""

    lower: float
    upper: float
    windows: int
    basis: str


def traffic_rate(window: Window, captures: "Iterable[Columns]") -> TrafficRate:
    """The rate of `window`, of whose `captures` a store streams the columns `FIELDS`."""
    import numpy as np

    arrived, shares = [np.empty(0, "int64")], [np.empty(0)]
    for columns in captures:
        arrived.append(np.array(columns["captured_at"], "int64"))
        shares.append(np.array(columns["sampling_share"], float))
    moments = np.sort(np.concatenate(arrived))
    ends = [_microseconds(window.start), _microseconds(window.end)]
    silence = np.diff(np.concatenate([ends[:1], moments, ends[1:]])).max()
    return TrafficRate(
        rows=moments.size,
        rate=float((1 / np.concatenate(shares)).sum()) / (LENGTH / timedelta(hours=1)),
        silence=timedelta(microseconds=int(silence)),
    )


def forecast(window: Window, past: Mapping[Window, float], config: VolumeConfig) -> Forecast | None:
    """Forecast the rate of `window` from those of windows before it, outages left out.

    None if too little is known, or if comparable windows often have no traffic at all.

    Comparable are the windows of the same hour of the week if there are enough, else of the day,
    else the most recent ones. Their median is expected, within a prediction interval for counts
    that vary more than Poisson's do, after Farrington et al. (1996): the power 2/3 of a count is
    nearly normal, and overdispersion and the uncertainty of the level widen the interval. Instead
    of their regression, level and dispersion are quantiles, which earlier mishaps hardly move
    (Noufaily et al. 2013 show how much that matters). What comparable windows have had is never
    unusual, however few they are.
    """
    known = {
        other: rate
        for other, rate in past.items()
        if timedelta() < window.start - other.start <= config.horizon
    }
    if len(known) < config.minimum_windows:
        return None
    comparable, period, basis = _comparable(window, known)
    regular = sum(rate > 0 for rate in comparable) >= REGULAR_SHARE * len(comparable)
    if not regular:
        return None
    level = median(comparable)
    dispersion = _dispersion(known, period)
    spread = dispersion * (1 + MEDIAN_VARIANCE / len(comparable))
    width = 2 / 3 * NormalDist().inv_cdf(1 - config.level) * math.sqrt(spread / level)
    # However wide the interval: where there was always traffic, none at all may be beyond chance.
    least = 1.0 if _none(min(comparable), dispersion) < config.level else 0.0
    return Forecast(
        lower=min(max(least, level * max(0.0, 1 - width) ** 1.5), *comparable),
        upper=max(level * (1 + width) ** 1.5, *comparable),
        windows=len(comparable),
        basis=basis,
    )


def usual_silence(
    silences: Mapping[Window, timedelta], now: datetime, config: VolumeConfig
) -> timedelta | None:
    """The longest time without a capture in the windows before `now`, outages left out.

    Windows without any capture that follow one another are one silence. None if too little is
    known.
    """
    known = sorted(
        window for window in silences if now - config.horizon <= window.start < now - LENGTH
    )
    if len(known) < config.minimum_windows:
        return None
    longest, empty = timedelta(), timedelta()
    for window in known:
        empty = empty + LENGTH if silences[window] >= LENGTH else timedelta()
        longest = max(longest, silences[window], empty)
    return longest


def longest_pause(silence: timedelta, config: VolumeConfig) -> timedelta:
    """How long traffic may pause, where `silence` was the longest of it that is usual."""
    return max(config.patience * silence, config.shortest_pause)


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _comparable(
    window: Window, known: Mapping[Window, float]
) -> tuple[Sequence[float], timedelta | None, str]:
    """The rates to compare with, the period after which an hour comes again, and what they are."""
    for period, needed, basis in (
        (WEEK, WEEKS_NEEDED, "same hour of the week"),
        (DAY, DAYS_NEEDED, "same hour of the day"),
    ):
        same = [
            rate
            for other, rate in known.items()
            if (window.start - other.start) % period == timedelta()
        ]
        if len(same) >= needed:
            return same, period, basis
    recent = sorted(known)[-RECENT_WINDOWS:]
    return [known[other] for other in recent], None, "most recent windows"


def _none(mean: float, dispersion: float) -> float:
    """How likely a count of that mean is zero: negative binomial, Poisson at a dispersion of 1."""
    if dispersion <= 1:
        return math.exp(-mean)
    return math.exp(-mean * math.log(dispersion) / (dispersion - 1))


def _dispersion(known: Mapping[Window, float], period: timedelta | None) -> float:
    """The variance of a count over its mean, at least Poisson's 1.

    It rests on all windows, each compared with those of its own hour, and is read off their 90 %
    quantile: so a tenth of them may be mishaps, and hours that differ from day to day count.
    """
    alike: defaultdict[timedelta, list[float]] = defaultdict(list)
    epoch = min(known).start
    for window, rate in known.items():
        hour = (window.start - epoch) % period if period else timedelta()
        alike[hour].append(rate)
    residuals = [
        # A level that was fitted to few values lies too near to each of them.
        abs(rate - level) * math.sqrt(len(rates) / (len(rates) - 1) / level)
        for rates in alike.values()
        if len(rates) > 1 and (level := median(rates)) > 0
        for rate in rates
    ]
    if not residuals:
        return 1.0
    largest = sorted(residuals)[math.ceil(DISPERSED_SHARE * len(residuals)) - 1]
    return max(1.0, (largest / NormalDist().inv_cdf((1 + DISPERSED_SHARE) / 2)) ** 2)


REPORT = "traffic_volume"
VOLUME_CHECK = "volume_as_expected"
SPAN = 48
"""The finished windows that are checked; captures that land in older ones change nothing here."""

_HOUR = timedelta(hours=1)
_NO_TRAFFIC = TrafficRate(rows=0, rate=0.0, silence=LENGTH)

Recorded = dict[MetricName, Metric]
"""The metrics of one window by name."""


class VolumeVerdict(StrEnum):
    """The verdict on a finished window's volume."""

    USUAL = "as usual"
    LESS = "less than usual"
    MORE = "more than usual"
    OUTAGE = "outage"
    ALL_REFUSED = "all refused"
    UNKNOWN = "not enough history"


@dataclass(frozen=True, slots=True)
class TrafficCheck:
    """The result of one check of the traffic.

    ``windows`` are the finished windows of the span, oldest first; ``changed_windows`` those of
    them whose metrics differ from those recorded before; ``rows_now`` is how many captures the
    present, unfinished hour has so far. ``silence`` is the time since the last capture, None if
    there never was one; ``pause`` how long it may be, None if too little is known. ``tokens`` name
    the captures that this check has read, for the next one.
    """

    windows: dict[Window, Recorded]
    changed_windows: tuple[Window, ...]
    rows_now: int
    silence: timedelta | None
    pause: timedelta | None
    tokens: dict[str, str]

    @property
    def is_fresh(self) -> bool:
        """Whether the present pause is usual, or too little is known to say so."""
        return self.silence is None or self.pause is None or self.silence <= self.pause

    @property
    def findings(self) -> list[Metric]:
        """The unusual rows of the changed windows, and of the newest one, oldest first."""
        reported = {*self.changed_windows, *list(self.windows)[-1:]}
        rows = [self.windows[window][MetricName.ROWS] for window in sorted(reported)]
        return [metric for metric in rows if metric.finding]


def check_traffic(
    store: "CaptureStore",
    history: MetricsHistory,
    tokens: Mapping[str, str],
    now: datetime,
    config: VolumeConfig,
) -> TrafficCheck:
    """Judge the windows that have finished or changed since the check that returned `tokens`.

    The metrics are recorded in `history`. Checking the same again changes nothing.

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
    changed_windows = []
    for window in span:
        if window in served:
            if window in known and tokens.get(window.key) == present[window.key]:
                continue
            seen, refused = traffic_rate(window, store.stream_columns(window, FIELDS)), 0
        else:
            seen, refused = _NO_TRAFFIC, sum(store.refusals(window).values())
        if window < beginning and not refused:
            continue
        metrics = _judged(window, seen, forecast(window, _rates(known), config), refused)
        if metrics != known.get(window):
            history.record(window, REPORT, [*metrics.values(), _check(metrics[MetricName.ROWS])])
            known[window] = metrics
            changed_windows.append(window)
    last = store.last_captured(max(served)) if served else None
    usual = usual_silence(_silences(known), now, config)
    return TrafficCheck(
        windows={window: known[window] for window in span if window in known},
        changed_windows=tuple(changed_windows),
        rows_now=store.count(current),
        silence=None if last is None else now - last,
        pause=None if usual is None else longest_pause(usual, config),
        tokens=present,
    )


def _check(rows: Metric) -> Metric:
    """The outcome of the check `VOLUME_CHECK` of one window; no value without a forecast."""
    decided = rows.finding or rows.lower is not None
    return Metric(
        rows.window,
        MetricName.CHECK,
        float(not rows.finding) if decided else None,
        rows.rows,
        column=VOLUME_CHECK,
        finding=rows.finding,
    )


def volume_verdict(rows: Metric) -> VolumeVerdict:
    """The verdict on a window by its recorded `rows`."""
    if not rows.finding:
        return VolumeVerdict.UNKNOWN if rows.lower is None else VolumeVerdict.USUAL
    if rows.value:
        return (
            VolumeVerdict.LESS
            if rows.lower is not None and rows.value < rows.lower
            else VolumeVerdict.MORE
        )
    return VolumeVerdict.OUTAGE if rows.lower else VolumeVerdict.ALL_REFUSED


def _recorded(history: MetricsHistory, since: Window, until: Window) -> dict[Window, Recorded]:
    names = (MetricName.ROWS, MetricName.ROW_RATE, MetricName.SILENCE)
    known: dict[Window, Recorded] = {}
    for metric in history.read(names, since=since, until=until):
        known.setdefault(metric.window, {})[metric.name] = metric
    return known


def _judged(window: Window, seen: TrafficRate, expected: Forecast | None, refused: int) -> Recorded:
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
    return {window: _value(metrics[MetricName.ROW_RATE]) for window, metrics in _lessons(known)}


def _silences(known: Mapping[Window, Recorded]) -> dict[Window, timedelta]:
    return {
        window: _value(metrics[MetricName.SILENCE]) * _HOUR for window, metrics in _lessons(known)
    }


def _lessons(known: Mapping[Window, Recorded]) -> list[tuple[Window, Recorded]]:
    """The windows to learn from: all but outages."""
    return [
        (window, metrics)
        for window, metrics in known.items()
        if metrics[MetricName.ROWS].value or not metrics[MetricName.ROWS].finding
    ]


def _value(metric: Metric) -> float:
    return metric.value or 0.0
