"""Two-sample tests of each column of a window against the reference, before correction."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, NumericColumn
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.monitoring.metrics import ALL
from mlschool_dagster.monitoring.multivariate import joint_test, shifts_given_others
from mlschool_dagster.monitoring.profiles import (
    Categories,
    Profile,
    Quantity,
    distance_in_deviations,
)
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile, WindowSummary
from mlschool_dagster.monitoring.statistics import (
    TestResult,
    anderson_darling,
    homogeneity,
    welch,
)


@dataclass(frozen=True, slots=True)
class Method:
    """A test: the aspect that it compares, its name, and that of its effect size."""

    aspect: str
    test: str
    effect_name: str


_QUANTITY = Method("distribution", "Anderson-Darling", "distance in sd")
_GIVEN = Method("mean given the other columns", "analysis of covariance", "shift in sd")
_MEAN = Method("mean", "Welch", "difference of means")
_CATEGORIES = Method("distribution", "chi-square", "total variation distance")
_MISSING = Method("missing share", "chi-square", "difference of shares")
_JOINT = Method("relations", "Hotelling, permuted", "distance beyond chance in sd")


@dataclass(frozen=True, slots=True)
class UncorrectedTest:
    """A test of a column before correction for multiple testing; no result: not enough data."""

    column: str
    method: Method
    n_current: int
    n_reference: int
    result: TestResult | None
    remark: str = ""


def uncorrected_tests(
    baseline: ReferenceProfile, window: WindowSummary, config: DriftConfig
) -> Iterator[UncorrectedTest]:
    """Every test of `window`: the same ones, in the same order, whatever it holds."""
    now, then = window.profile, baseline.own.profile
    shifts = _shifts(baseline, now, config)
    for column in baseline.spec.columns:
        name = column.name
        if isinstance(column, NumericColumn):
            yield _quantity(name, baseline, now.quantities[name], config)
            if name in baseline.design.judged:
                sizes = now.quantities[name].present, then.quantities[name].present
                yield UncorrectedTest(name, _GIVEN, *sizes, shifts.get(name))
        else:
            yield _categories(name, now.categories[name], then.categories[name], config)
        yield _missing(name, now.column(name), then.column(name), config)
    yield _categories(PREDICTION, now.categories[PREDICTION], then.categories[PREDICTION], config)
    yield _confidence(now.quantities[CONFIDENCE], then.quantities[CONFIDENCE], config)
    sizes = len(window.sample), len(baseline.own.sample)
    enough = min(sizes) >= config.minimum_rows
    result = joint_test(window.sample, baseline.own.sample) if enough else None
    yield UncorrectedTest(ALL, _JOINT, *sizes, result)


def _shifts(baseline: ReferenceProfile, now: Profile, config: DriftConfig) -> dict[str, TestResult]:
    """The tests of each numeric column that has enough values given the other columns."""
    then = baseline.own.profile
    if min(now.rows, then.rows) < config.minimum_rows:
        return {}
    columns = [
        name
        for name in baseline.design.judged
        if min(p.quantities[name].present for p in (now, then)) >= config.minimum_rows
    ]
    # Where values come or go, what a column explains is no longer what it did.
    unlike = [
        name
        for name in baseline.spec.input_names
        if abs(_known_share(now, name) - _known_share(then, name)) > config.minimum_effect
    ]
    return shifts_given_others(baseline.design, now, columns, unlike, config.alpha)


def _known_share(profile: Profile, name: str) -> float:
    column = profile.column(name)
    unknown = int(column.counts[-1]) if isinstance(column, Categories) else 0
    return (column.present - unknown) / profile.rows


def _quantity(
    name: str, baseline: ReferenceProfile, now: Quantity, config: DriftConfig
) -> UncorrectedTest:
    then = baseline.own.profile.quantities[name]
    sizes = now.present, then.present
    if min(sizes) < config.minimum_rows:
        return UncorrectedTest(name, _QUANTITY, *sizes, result=None)
    cells = baseline.cells.quantities[name]
    distance = distance_in_deviations(now, then, cells)
    result = TestResult(*anderson_darling(now.counts, then.counts), distance)
    remark = f"mean {cells.mean(now):.4g}, was {cells.mean(then):.4g}"
    return UncorrectedTest(name, _QUANTITY, *sizes, result, remark)


def _confidence(now: Quantity, then: Quantity, config: DriftConfig) -> UncorrectedTest:
    sizes = now.present, then.present
    if min(sizes) < config.minimum_rows:
        return UncorrectedTest(CONFIDENCE, _MEAN, *sizes, result=None)
    result = welch((now.mean, then.mean), (now.variance, then.variance), sizes)
    remark = f"mean {now.mean:.4g}, was {then.mean:.4g}"
    return UncorrectedTest(CONFIDENCE, _MEAN, *sizes, result, remark)


def _categories(
    name: str, now: Categories, then: Categories, config: DriftConfig
) -> UncorrectedTest:
    sizes = now.present, then.present
    if min(sizes) < config.minimum_rows:
        return UncorrectedTest(name, _CATEGORIES, *sizes, result=None)
    unknown = int(now.counts[-1])
    remark = f"{unknown} values outside the known categories" if unknown else ""
    return UncorrectedTest(name, _CATEGORIES, *sizes, homogeneity(now.counts, then.counts), remark)


def _missing(
    name: str, now: Quantity | Categories, then: Quantity | Categories, config: DriftConfig
) -> UncorrectedTest:
    sizes = now.present + now.missing, then.present + then.missing
    if min(sizes) < config.minimum_rows:
        return UncorrectedTest(name, _MISSING, *sizes, result=None)
    counts = [np.array([column.missing, column.present]) for column in (now, then)]
    remark = f"{now.missing / sizes[0]:.1%} missing, was {then.missing / sizes[1]:.1%}"
    return UncorrectedTest(name, _MISSING, *sizes, homogeneity(*counts), remark)
