"""Intervals for several shares at once, and for the difference of two."""

import math
from statistics import NormalDist

from mlschool_dagster.monitoring.statistics import wilson_interval


def corrected_z(comparisons: int, alpha: float = 0.05) -> float:
    """The normal quantile with which `comparisons` intervals hold together but for `alpha`.

    Bonferroni's correction: each of them gets an equal part of `alpha`.
    """
    return NormalDist().inv_cdf(1 - alpha / (2 * max(1, comparisons)))


def difference_interval(
    successes: int, trials: int, other_successes: int, other_trials: int, z: float
) -> tuple[float, float]:
    """The interval of a share less an independent other one (Newcombe 1998, method 10).

    It is put together from Wilson's intervals of both, and keeps their coverage near 0 and 1.
    Neither may be without trials.
    """
    share, other = successes / trials, other_successes / other_trials
    low, high = wilson_interval(successes, trials, z)
    other_low, other_high = wilson_interval(other_successes, other_trials, z)
    difference = share - other
    return (
        difference - math.hypot(share - low, other_high - other),
        difference + math.hypot(high - share, other - other_low),
    )
