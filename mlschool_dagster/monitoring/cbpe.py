"""Confidence-based performance estimation (CBPE): the accuracy of a window before labels arrive.

The expected accuracy is the mean of the rows' calibrated confidences: unbiased if these are
calibrated (Kivimäki et al. 2025, "Confidence-based estimators for predictive performance in model
monitoring"). It holds as far as a confidence means in the window what it meant among the
out-of-fold rows. Under covariate shift it nearly does; under concept drift, or when a sensor fails,
it does not, and the confidences do not show it.

The calibration is not fitted anew to each window, its rows weighted by a density ratio of their
inputs (Białek et al. 2024, "Estimating model performance under covariate shift without labels"):
with a few hundred out-of-fold rows the weights add as much variance as they take bias away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from mlschool_dagster.modeling.calibration import DRAWS, ConfidenceCalibration

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected accuracy of some rows, and the 95 % prediction interval of the realised one.

    The interval contains the uncertainty of the calibration and the chance of each row.
    """

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedCorrect:
    """The distribution of the number of correct predictions in groups of rows.

    ``rows`` and ``hits``, the expected number of right predictions, have shape (groups,); ``drawn``
    are numbers of right predictions that are equally likely, shape (draws, groups).
    """

    rows: Counts
    hits: Array
    drawn: Counts

    def estimate(self, group: int) -> Estimate | None:
        """The estimate of a group; None without rows."""
        rows = int(self.rows[group])
        if not rows:
            return None
        low, high = central_interval(self.drawn[:, group] / rows, 0.05)
        accuracy = float(self.hits[group] / rows)
        # Where nearly every row is right, the mean may lie beyond what 95 in 100 draws show.
        return Estimate(accuracy, min(low, accuracy), max(high, accuracy))


def expected_correct(counts: Counts, calibration: ConfidenceCalibration) -> ExpectedCorrect:
    """Estimate the correct predictions of rows counted by group and bin, shape (groups, bins).

    By each curve of the calibration, a group's number of right predictions has the Poisson-binomial
    distribution; one number is drawn from it. Equal arguments give equal numbers.
    """
    chances = calibration.chances()
    seen = counts.any(axis=0)
    rng = np.random.default_rng(0)
    drawn = np.zeros((DRAWS, len(counts)), dtype=np.int64)
    for group in np.flatnonzero(counts.any(axis=1)):
        drawn[:, group] = rng.binomial(counts[group, seen], chances[:, seen]).sum(axis=1)
    return ExpectedCorrect(counts.sum(axis=1), counts @ chances.mean(axis=0), drawn)


def summed(parts: Iterable[ExpectedCorrect], groups: int) -> ExpectedCorrect:
    """The sum of several versions' `ExpectedCorrect` over the same `groups`."""
    nothing = ExpectedCorrect(
        np.zeros(groups, np.int64), np.zeros(groups), np.zeros((DRAWS, groups), np.int64)
    )
    return reduce(
        lambda one, other: ExpectedCorrect(
            one.rows + other.rows, one.hits + other.hits, one.drawn + other.drawn
        ),
        parts,
        nothing,
    )


def central_interval(drawn: Array, alpha: float) -> tuple[float, float]:
    """The values between which all but a share `alpha` of the equally likely `drawn` lie."""
    low = np.quantile(drawn, alpha / 2, method="inverted_cdf")
    high = np.quantile(drawn, 1 - alpha / 2, method="inverted_cdf")
    return float(low), float(high)
