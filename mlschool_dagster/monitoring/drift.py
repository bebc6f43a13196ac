"""Drift of a window: two-sample tests of its rows against the model's training rows.

Every input column is tested for its distribution and its missing share, every numeric one also for
its mean given the other columns, the model's prediction and confidence, and all columns together
for their relations. Drift is a test that is both significant, after correction for the number of
tests, and above the smallest effect that matters.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import (
    CONFIDENCE,
    PREDICTION,
    ROLE,
    TOGETHER,
    DataSpec,
    NumericColumn,
)
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
from mlschool_dagster.monitoring.thresholds import DriftConfig

if TYPE_CHECKING:
    import pandas as pd


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


class DriftVerdict(StrEnum):
    """The verdict on a column, or on a window."""

    DRIFTED = "drifted"
    STABLE = "no drift found"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One test of one column, with all that its verdict rests on.

    ``aspect`` is what was compared: ``distribution``, ``missing share``, ``mean``, ``mean given the
    other columns``, or of the column `ALL` the ``relations``. Statistic, p-values and effect are
    None where there was not enough data to test.
    """

    column: str
    aspect: str
    test: str
    effect_name: str
    n_current: int
    n_reference: int
    alpha: float
    minimum_effect: float
    statistic: float | None
    p_value: float | None
    adjusted_p_value: float | None
    effect: float | None
    verdict: DriftVerdict
    why: str


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Every test of a window, and the verdict over all of them."""

    n_current: int
    n_reference: int
    tests: tuple[DriftTest, ...]

    @property
    def drifted_columns(self) -> list[str]:
        """The columns with at least one test that shows drift, in order; `ALL` is none of them."""
        drifted = (test.column for test in self.tests if test.verdict is DriftVerdict.DRIFTED)
        return [column for column in dict.fromkeys(drifted) if column != ALL]

    @property
    def verdict(self) -> DriftVerdict:
        """Drifted if any test says so; stable only if every test had enough data to say so."""
        verdicts = {test.verdict for test in self.tests}
        for decisive in (DriftVerdict.DRIFTED, DriftVerdict.NOT_ENOUGH_DATA):
            if decisive in verdicts:
                return decisive
        return DriftVerdict.STABLE

    @property
    def summary(self) -> str:
        """The verdict as one sentence that names the columns."""
        compared = f"{self.n_current} rows against {self.n_reference} of the reference"
        if self.verdict is DriftVerdict.DRIFTED:
            where = ", ".join(self.drifted_columns) or f"{TOGETHER}, in none by itself"
            return f"Drift in {where} ({compared})."
        if self.verdict is DriftVerdict.STABLE:
            return f"No drift found in {len(self.tests)} tests ({compared})."
        lacking = dict.fromkeys(
            test.column or TOGETHER
            for test in self.tests
            if test.verdict is DriftVerdict.NOT_ENOUGH_DATA
        )
        return f"Not enough data to judge {', '.join(lacking)} ({compared})."

    def column_verdict(self, column: str) -> DriftVerdict:
        """The verdict on `column` over all of its tests."""
        tests = tuple(test for test in self.tests if test.column == column)
        return DriftReport(self.n_current, self.n_reference, tests).verdict

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible data."""
        return {
            "verdict": str(self.verdict),
            "summary": self.summary,
            "drifted_columns": self.drifted_columns,
            "n_current": self.n_current,
            "n_reference": self.n_reference,
            "tests": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping a test, for a table."""
        return [
            {**asdict(test), "column": test.column or TOGETHER, "verdict": str(test.verdict)}
            for test in self.tests
        ]


def drift(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig | None = None,
) -> DriftReport:
    """Compare a window (`snapshot.captures_table`) with the reference of the version that served.

    See `drift_from`.

    Raises:
        UserError: the reference lacks a column that the spec names.
    """
    baseline = ReferenceProfile(reference, spec)
    return drift_from(baseline, baseline.summary([current]), config or DriftConfig())


def drift_from(
    baseline: ReferenceProfile, window: WindowSummary, config: DriftConfig
) -> DriftReport:
    """Compares a window with the reference of the version that served it.

    Numeric columns: Anderson-Darling, and the mean given the other columns. Categorical columns and
    the prediction: chi-square (values outside the spec's categories count as one category of their
    own). Every input: chi-square of missing and present. Confidence: Welch's test of the mean,
    because the reference's confidences are out-of-fold, from models that differ from the one that
    serves: the shape of their distribution differs without any drift, their mean, which estimates
    the accuracy, hardly does. All inputs together: a permutation test of Hotelling's statistic.
    p-values are adjusted over all tests of the window by Benjamini and Hochberg.

    The effects are shares of rows, or, for quantities, standard deviations of the reference.
    """
    from scipy.stats import false_discovery_control

    compared = list(uncorrected_tests(baseline, window, config))
    tested = [c.result.p_value for c in compared if c.result is not None]
    adjusted = iter(false_discovery_control(tested) if tested else ())
    tests = tuple(
        _judged(c, None if c.result is None else float(next(adjusted)), config) for c in compared
    )
    return DriftReport(window.profile.rows, baseline.own.profile.rows, tests)


def _judged(test: UncorrectedTest, adjusted: float | None, config: DriftConfig) -> DriftTest:
    verdict, why = _verdict(test, adjusted, config)
    method, result = test.method, test.result
    return DriftTest(
        column=test.column,
        aspect=method.aspect,
        test=method.test,
        effect_name=method.effect_name,
        n_current=test.n_current,
        n_reference=test.n_reference,
        alpha=config.alpha,
        minimum_effect=config.minimum_effect,
        statistic=result.statistic if result else None,
        p_value=result.p_value if result else None,
        adjusted_p_value=adjusted,
        effect=result.effect if result else None,
        verdict=verdict,
        why=why,
    )


def _verdict(
    test: UncorrectedTest, adjusted: float | None, config: DriftConfig
) -> tuple[DriftVerdict, str]:
    if test.result is None or adjusted is None:
        return DriftVerdict.NOT_ENOUGH_DATA, (
            f"{test.n_current} values in the window and {test.n_reference} in the "
            f"reference; a verdict needs {config.minimum_rows} in each"
        )
    effect = test.result.effect
    significant, large = adjusted <= config.alpha, effect >= config.minimum_effect
    reasons = [
        f"adjusted p {adjusted:.2g} is {'at most' if significant else 'above'} {config.alpha:g}",
        f"{test.method.effect_name} {effect:.2g} is "
        f"{'at least' if large else 'below'} {config.minimum_effect:g}",
        test.remark,
    ]
    verdict = DriftVerdict.DRIFTED if significant and large else DriftVerdict.STABLE
    return verdict, "; ".join(filter(None, reasons))


SEGMENT_ROWS = 20_000
"""Rows of a window to compare by segment: more would only detect what is too small to matter."""


@dataclass(frozen=True, slots=True)
class SegmentDrift:
    """The drift of one segment; ``columns`` names those that drifted.

    A segment may change while the whole does not, and the whole may change only because the shares
    of its segments do.
    """

    segment: str
    rows: int
    reference_rows: int
    verdict: str
    columns: str
    why: str

    def row(self) -> dict[str, Any]:
        """One flat mapping, for a table."""
        return asdict(self)


def drift_by_segment(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig | None = None,
) -> list[SegmentDrift]:
    """Compares each segment of `current` (`snapshot.captures_table`) with the same of `reference`.

    A role is compared with the whole reference. Segments with fewer rows than a verdict needs, in
    either, are left out. The chance that a window without drift has any segment flagged is at most
    `alpha` of `config`: each has an equal part of it (Bonferroni).
    """
    config = config or DriftConfig()
    compared = [
        (name, now, then)
        for name, now, then in _segments(current, reference, spec)
        if min(len(now), len(then)) >= config.minimum_rows
    ]
    strict = replace(config, alpha=config.alpha / max(1, len(compared)))
    return [_compared(name, now, then, spec, strict) for name, now, then in compared]


def _segments(
    current: "pd.DataFrame", reference: "pd.DataFrame", spec: DataSpec
) -> "Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]":
    for column in spec.categorical:
        for value in column.categories:
            now = current[current[column.name] == value]
            yield f"{column.name}={value}", now, reference[reference[column.name] == value]
    if current[ROLE].nunique() > 1:
        for role, now in current.groupby(ROLE):
            yield f"{ROLE}={role}", now, reference


def _compared(
    name: str,
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig,
) -> SegmentDrift:
    report = drift(current, reference, spec, config)
    return SegmentDrift(
        name,
        len(current),
        len(reference),
        str(report.verdict),
        ", ".join(column or "all together" for column in report.drifted_columns),
        report.summary,
    )
