"""Test martingale over windows: sequential evidence for drift, valid after any number of windows.

Each window yields an e-value against a composite null: the confidence region of the reference,
widened by the smallest effect that matters. A p-value a window would not do: it flags every
twentieth quiet window, and windows that share a reference share its sampling error.

If the null contains the truth (probability at least 1 - alpha/2), a window's e-value has an
expected value of at most 1, whatever the windows before, so that the evidence is a test
supermartingale: the probability that it ever reaches 2/alpha is at most alpha/2 (Ville 1939). Hence
the chance of any false alarm in `HORIZON` windows is at most alpha, if rows are independent of one
another.

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
from mlschool_dagster.monitoring.metrics import ALL
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile, WindowSummary
from mlschool_dagster.monitoring.statistics import Counts, Floats
from mlschool_dagster.monitoring.thresholds import DriftConfig

HORIZON = 1_000
"""Windows over which evidence is gathered, and the chance of any false alarm is bounded."""

STAKES = np.array([1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.95])
"""Betting fractions: the shares of the wealth at stake. Small ones detect small changes in many
rows; as the size of a change is not known, the wealth is spread evenly over all."""

LARGEST = 1e12
"""The largest e-value reported."""

LIMIT_PRECISION = 1e-6

RANK_PER_DEVIATION = 1 / (2 * math.sqrt(math.pi))
"""By how much a shift of one standard deviation moves the mean rank of normal values."""


class _Of(StrEnum):
    """The aspect of a column that a bet is about."""

    VALUES = "values"
    MISSING = "missing"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class _Bet:
    """A bet that the mean of a number in [0, 1], one for each cell of a column, is above a limit.

    A row multiplies the wealth by 1 + stake (value/limit - 1), whose expected value is at most 1 if
    the mean is not above the limit.
    """

    values: Floats
    limit: float

    def logarithms(self) -> Floats:
        """The log of the factor by which a row multiplies the wealth: (stakes, cells)."""
        return np.log1p(STAKES[:, None] * (self.values / self.limit - 1))


class CompositeNull:
    """The hypothesis of no drift: all distributions compatible with the reference of `baseline`."""

    def __init__(self, baseline: ReferenceProfile, config: DriftConfig) -> None:
        self._wins = {
            counted: np.stack([bet.logarithms() for bet in bets])
            for counted, bets in _bets(baseline, config).items()
            if bets
        }

    def e_values(self, window: WindowSummary) -> dict[str, float]:
        """The window's e-value against no drift, by column; 1 is no evidence.

        That of `ALL` is about each numeric column given the others.
        """
        return {name: float(value) for name, value in self.wealth(self.logarithms(window)).items()}

    def logarithms(self, window: WindowSummary) -> dict[str, Floats]:
        """The log wealth of every bet on a column: (bets, stakes). It adds up over rows."""
        won: dict[str, list[Floats]] = {}
        for (column, of), wins in self._wins.items():
            stream = ALL if of is _Of.UNEXPLAINED else column
            won.setdefault(stream, []).append(wins @ _counts(window, column, of))
        return {stream: np.concatenate(parts) for stream, parts in won.items()}

    def wealth(self, logarithms: Mapping[str, Floats]) -> dict[str, Floats]:
        """The e-values of bets with this log wealth: (..., bets, stakes) becomes (...)."""
        return {
            stream: np.asarray(np.minimum(_wealth(won), LARGEST).mean(axis=-1))
            for stream, won in logarithms.items()
        }


def _wealth(logarithms: Floats) -> Floats:
    """The mean wealth over the stakes (last axis), each of which began with 1."""
    return np.asarray(np.exp(np.minimum(logarithms, math.log(LARGEST) + 9)).mean(axis=-1))


def _counts(window: WindowSummary, column: str, of: _Of) -> Counts:
    if of is _Of.UNEXPLAINED:
        return window.residuals[column]
    counted = window.profile.column(column)
    if of is _Of.MISSING:
        return np.array([counted.present, counted.missing])
    return counted.counts


def _bets(baseline: ReferenceProfile, config: DriftConfig) -> dict[tuple[str, _Of], list[_Bet]]:
    """The bets on each column, whose limits hold simultaneously with probability 1 - alpha/2."""
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
    of the second likewise, to first order. Hence the limits. Shifts up to `deviations` are part of
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
        wealth = _wealth(_Bet(1 - values, 1 - middle).logarithms() @ counts)
        if wealth >= 2 / error:
            refuted = middle
        else:
            held = middle
    return refuted


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence for drift over a sequence of windows.

    ``paths`` has each column's part of the evidence after each window, oldest first (`ALL`: the
    relations between columns). Drift is confirmed when their sum reaches ``threshold``.
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
        """Whether the evidence after the newest window reaches the threshold."""
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
    """Accumulate the e-values by column of `windows`, at least one, oldest first.

    A column's evidence is the mixture over the window in which a change began, with equal weights
    on the last `HORIZON` (a Shiryaev-Roberts e-detector). It is kept below ten times what an alarm
    takes, so that an alarm ends soon after the drift does.
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
