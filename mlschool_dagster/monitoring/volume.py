"""Volume and freshness: is there as much traffic as is usual, and does it still come.

What is usual is learned from the windows before, so that it says nothing while they are few, or
while traffic is not regular. A window without a capture that should have had some is an outage. It
teaches nothing: the next one must be seen as well.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from mlschool_dagster.capture.windows import LENGTH, Window

if TYPE_CHECKING:
    import pandas as pd

DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
DAYS_NEEDED, WEEKS_NEEDED = 7, 4
"""How many windows of the same hour of the day, or of the week, are enough to learn from."""
RECENT_WINDOWS = 48
REGULAR_SHARE = 0.8
"""Which share of comparable windows must have had traffic for it to be expected at all."""
DISPERSED_SHARE = 0.9
"""The share of windows that dispersion rests on; the others may be mishaps."""
MEDIAN_VARIANCE = math.pi / 2
"""How much more a median of normal values varies than their mean."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """When traffic counts as unusual.

    ``level`` is how often a usual window may be found below what is expected, and how often above;
    ``minimum_windows`` is how many windows must be known before anything is expected;
    ``patience`` is how many times the longest usual silence traffic may pause, and
    ``shortest_pause`` what it may always; ``horizon`` is how far back one learns.
    """

    level: float = 0.001
    minimum_windows: int = 24
    patience: float = 2.0
    horizon: timedelta = timedelta(days=28)
    shortest_pause: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Pace:
    """The traffic of a window.

    ``rows`` were captured; ``rate`` is rows per hour with those that sampling left out; ``silence``
    is the longest time without a capture within the window.
    """

    rows: int
    rate: float
    silence: timedelta


@dataclass(frozen=True, slots=True)
class Expectation:
    """What rows per hour are usual for a window, learned from `windows` comparable ones."""

    lower: float
    upper: float
    windows: int
    basis: str


def pace(window: Window, frames: "Iterable[pd.DataFrame]") -> Pace:
    """The pace of `window`, whose captures `frames` hold, as a store streams them."""
    import numpy as np

    arrived, shares = [np.empty(0, "int64")], [np.empty(0)]
    for frame in frames:
        arrived.append(frame["captured_at"].to_numpy("datetime64[us]").astype("int64"))
        shares.append(frame["sampling_share"].to_numpy(float))
    moments = np.sort(np.concatenate(arrived))
    ends = [_microseconds(window.start), _microseconds(window.end)]
    silence = np.diff(np.concatenate([ends[:1], moments, ends[1:]])).max()
    return Pace(
        rows=moments.size,
        rate=float((1 / np.concatenate(shares)).sum()) / (LENGTH / timedelta(hours=1)),
        silence=timedelta(microseconds=int(silence)),
    )


def expectation(
    window: Window, past: Mapping[Window, float], config: VolumeConfig
) -> Expectation | None:
    """What rate is usual for `window`, given those of windows before it, outages left out.

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
    return Expectation(
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
