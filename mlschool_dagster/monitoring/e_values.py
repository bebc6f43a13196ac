"""Drift over many windows: evidence that may be looked at after each of them.

A p-value a window finds drift in every twentieth quiet window, and p-values of windows that share
one reference are not even independent: where the reference is off by chance, all of them are.
So each window is tested against the reference's *region*: all that the truth may be, given that
the reference is a sample of it, and all that is too small to matter. On the event that the region
holds the truth (probability at least 1 - alpha/2), a window's e-value has an expected value of at
most 1 whatever the windows before it were, and the evidence is a test supermartingale: that it ever
reaches 2/alpha has probability at most alpha/2 (Ville 1939). So in `HORIZON` quiet windows the
chance of any alarm is at most alpha. It presumes that rows are drawn independently of one another.

E-values: Vovk and Wang (2021). Betting on a bounded mean: Waudby-Smith and Ramdas (2024). Mixing
over the window in which the change began: Shin, Ramdas and Rinaldo (2024).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np

from mlschool_dagster.dataset.spec import CONFIDENCE, TOGETHER
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.monitoring.metrics import ALL
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile, WindowSummary
from mlschool_dagster.monitoring.statistics import Counts, Floats

HORIZON = 1_000
"""Windows over which the chance of any false alarm is held, and over which evidence is gathered."""

STAKES = np.array([1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.95])
"""Shares of the capital put on a bet; small ones find small changes in many rows. As the size of a
change is not known, the capital is spread evenly over them."""

LARGEST = 1e12
"""The largest e-value told: more evidence than anybody needs."""

LIMIT_PRECISION = 1e-6

RANK_PER_DEVIATION = 1 / (2 * math.sqrt(math.pi))
"""By how much a shift of one standard deviation moves the mean rank of normal values."""


class _Of(StrEnum):
    """What of a column is counted."""

    VALUES = "values"
    MISSING = "missing"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class _Bet:
    """That the mean of a number in [0, 1], one for each cell of a column, is above a limit.

    A row multiplies the capital by 1 + stake (value/limit - 1), whose expected value is at most 1
    if the mean is not above.
    """

    values: Floats
    limit: float

    def logarithms(self) -> Floats:
        """By what a row multiplies the capital, as logarithms: (stakes, cells)."""
        return np.log1p(STAKES[:, None] * (self.values / self.limit - 1))


class CompositeNull:
    """All that a quiet window's truth may be, given the reference of `baseline`."""

    def __init__(self, baseline: ReferenceProfile, config: DriftConfig) -> None:
        self._wins = {
            counted: np.stack([bet.logarithms() for bet in bets])
            for counted, bets in _bets(baseline, config).items()
            if bets
        }

    def e_values(self, window: WindowSummary) -> dict[str, float]:
        """The window's own evidence against "no drift", by column; 1 says nothing.

        That of `ALL` is about what each numeric column is given the others.
        """
        return {name: float(told) for name, told in self.wealth(self.logarithms(window)).items()}

    def logarithms(self, window: WindowSummary) -> dict[str, Floats]:
        """The logarithms of what every bet on a column has won: (bets, stakes).

        Those of several windows add up to those of all their rows.
        """
        won: dict[str, list[Floats]] = {}
        for (column, of), wins in self._wins.items():
            stream = ALL if of is _Of.UNEXPLAINED else column
            won.setdefault(stream, []).append(wins @ _counts(window, column, of))
        return {stream: np.concatenate(parts) for stream, parts in won.items()}

    def wealth(self, logarithms: Mapping[str, Floats]) -> dict[str, Floats]:
        """The e-values of bets that have won so much: (..., bets, stakes) becomes (...)."""
        return {
            stream: np.asarray(np.minimum(_wealth(won), LARGEST).mean(axis=-1))
            for stream, won in logarithms.items()
        }


def _wealth(logarithms: Floats) -> Floats:
    """What has become of a capital of 1 that was spread evenly over the stakes (last axis)."""
    return np.asarray(np.exp(np.minimum(logarithms, math.log(LARGEST) + 9)).mean(axis=-1))


def _counts(window: WindowSummary, column: str, of: _Of) -> Counts:
    if of is _Of.UNEXPLAINED:
        return window.residuals[column]
    counted = window.profile.column(column)
    if of is _Of.MISSING:
        return np.array([counted.present, counted.missing])
    return counted.counts


def _bets(baseline: ReferenceProfile, config: DriftConfig) -> dict[tuple[str, _Of], list[_Bet]]:
    """The bets on each column, whose limits hold the truth together but for alpha/2."""
    own, spec = baseline.own, baseline.spec
    ranked = {
        (column.name, of): 1.0 if of is _Of.VALUES else baseline.unexplained_spread(column.name)
        for column in spec.numeric
        for of in (_Of.VALUES, _Of.UNEXPLAINED)
        if of is _Of.VALUES or column.name in baseline.design.judged
    }
    shares = {
        **{(name, _Of.VALUES): np.eye(c.counts.size) for name, c in own.profile.categories.items()},
        **{(name, _Of.MISSING): np.array([[0.0, 1.0]]) for name in spec.input_names},
    }
    cells = own.profile.quantities[CONFIDENCE].counts.size
    shares[CONFIDENCE, _Of.VALUES] = np.linspace(0.0, 1.0, cells)[None, :]
    regions = 2 * len(ranked) + sum(len(values) for values in shares.values())
    error = config.alpha / 2 / regions
    bets: dict[tuple[str, _Of], list[_Bet]] = {}
    for counted, spread in ranked.items():
        bets[counted] = _ranks(_counts(own, *counted), error, config.minimum_effect / spread)
    for counted, scores in shares.items():
        counts = _counts(own, *counted)
        if counts.any():
            bets[counted] = [
                bet for values in scores for bet in _bounded(values, counts, error, config)
            ]
    return bets


def _ranks(counts: Counts, error: float, deviations: float) -> list[_Bet]:
    """Bets on where a value lies among the reference's, and on how far from their median.

    The mean of the first over new values from the reference's distribution is 1 less the mean of as
    many independent uniform variables as the reference has values, whatever the distribution; that
    of the second likewise, to first order. Hence the null. Shifts up to `deviations` are part of
    it.
    """
    total = int(counts.sum())
    if not total:
        return []
    share = counts / total
    ranks = np.cumsum(share) - share / 2
    sampling = NormalDist().inv_cdf(1 - error / 2) / math.sqrt(12 * total)
    reach = max(sampling, deviations * RANK_PER_DEVIATION)
    bets: list[_Bet] = []
    for values in (ranks, 2 * np.abs(ranks - 0.5)):
        centre = float(values @ share)
        bets += _both(values, centre - reach, centre + reach)
    return bets


def _bounded(values: Floats, counts: Counts, error: float, config: DriftConfig) -> list[_Bet]:
    """Bets on a mean that the reference bounds by the same bets, lost on its own rows."""
    mean = float(values @ counts) / int(counts.sum())
    high = max(_limit(values, counts, error), mean + config.minimum_effect)
    low = min(1 - _limit(1 - values, counts, error), mean - config.minimum_effect)
    return _both(values, low, high)


def _both(values: Floats, low: float, high: float) -> list[_Bet]:
    """The bets that a mean is above `high`, and that it is below `low`, where it can be."""
    bets = [_Bet(values, high), _Bet(1 - values, 1 - low)]
    return [bet for bet in bets if bet.limit < 1]


def _limit(values: Floats, counts: Counts, error: float) -> float:
    """The upper confidence limit of a mean in [0, 1], with coverage 1 - error/2."""
    held, refuted = float(values @ counts) / int(counts.sum()), 1.0
    # Bisection: the bet that the mean is below a value wins the more, the larger the value.
    while refuted - held > LIMIT_PRECISION:
        middle = (held + refuted) / 2
        capital = _wealth(_Bet(1 - values, 1 - middle).logarithms() @ counts)
        if capital >= 2 / error:
            refuted = middle
        else:
            held = middle
    return refuted


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a succession of windows says of drift.

    ``paths`` holds each column's part of the evidence after each window, oldest first (`ALL`: what
    columns have to do with one another). Drift is confirmed where their sum reaches ``threshold``.
    """

    threshold: float
    paths: Mapping[str, Sequence[float]]

    @property
    def parts(self) -> dict[str, float]:
        """Each column's part after the newest window, the largest first."""
        newest = {name: path[-1] for name, path in self.paths.items()}
        return dict(sorted(newest.items(), key=lambda part: -part[1]))

    @property
    def totals(self) -> list[float]:
        """The evidence of all columns after each window."""
        return [math.fsum(parts) for parts in zip(*self.paths.values(), strict=True)]

    @property
    def confirmed(self) -> bool:
        """Whether drift is certain enough after the newest window."""
        return self.totals[-1] >= self.threshold

    @property
    def confirmed_columns(self) -> list[str]:
        """The columns whose own part suffices, the clearest first."""
        return [name for name, part in self.parts.items() if name and part >= self.threshold]

    @property
    def summary(self) -> str:
        """The verdict over all windows as one sentence that names the columns."""
        total, windows = self.totals[-1], len(self.totals)
        over = f"{windows} window{'s' if windows > 1 else ''}"
        if not self.confirmed:
            return (
                f"No drift is confirmed: the evidence of {over} is {total:.3g}; "
                f"{self.threshold:g} would confirm it."
            )
        where = ", ".join(self.confirmed_columns) or TOGETHER
        return (
            f"Drift is confirmed in {where}: the evidence of {over} is {total:.3g}, "
            f"at least {self.threshold:g}."
        )

    def rows(self, e_values: Mapping[str, float]) -> list[dict[str, str | float]]:
        """One flat mapping a column, for a table; `e_values` are those of the newest window."""
        return [
            {
                "column": name or TOGETHER,
                "e_value": e_values.get(name, 1.0),
                "evidence": part,
                "threshold": self.threshold,
                "verdict": "confirmed" if part >= self.threshold else "not confirmed",
            }
            for name, part in self.parts.items()
        ]


def evidence(windows: Sequence[Mapping[str, float]], alpha: float) -> Evidence:
    """The evidence of `windows`, at least one, each given by its e-values by column, oldest first.

    A column's evidence is that of a change which began in any one of the last `HORIZON` windows,
    each of which is as likely. It is kept below ten times what an alarm takes, so that an alarm
    ends soon after the drift does.
    """
    threshold = 2 / alpha
    newest = windows[-HORIZON:]
    columns = list(dict.fromkeys(name for window in newest for name in window))
    return Evidence(
        threshold,
        {
            name: [
                part / len(columns)
                for part in _accumulated(
                    (window.get(name, 1.0) for window in newest), 10 * threshold * len(columns)
                )
            ]
            for name in columns
        },
    )


def _accumulated(e_values: Iterable[float], most: float) -> Iterator[float]:
    total = 0.0
    for e_value in e_values:
        total = min(most, e_value * (total + 1 / HORIZON))
        yield total
