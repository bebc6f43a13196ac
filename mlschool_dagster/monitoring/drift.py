"""Drift: whether a window's rows still come from where the model's training rows came from.

Every input column is tested for its distribution and for its missing share, and so are the model's
prediction and confidence. A test is evidence only if it is both significant, after correction for
the number of tests, and large enough to matter.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import CONFIDENCE, PREDICTION, CategoricalColumn, DataSpec
from mlschool_dagster.monitoring.config import DriftConfig
from mlschool_dagster.monitoring.statistics import (
    Counts,
    Floats,
    TestResult,
    benjamini_hochberg,
    homogeneity,
    kolmogorov_smirnov,
    welch,
)

if TYPE_CHECKING:
    import pandas as pd


class DriftVerdict(StrEnum):
    """What can be said of a column, or of a window."""

    DRIFTED = "drifted"
    STABLE = "no drift found"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One test of one column, with all that its verdict rests on.

    ``aspect`` is what was compared: ``distribution``, ``missing share`` or ``mean``. Statistic,
    p-values and effect are None where there was not enough data to test.
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
    """What every test of a window found, and the verdict over all of them."""

    n_current: int
    n_reference: int
    tests: tuple[DriftTest, ...]

    @property
    def drifted_columns(self) -> list[str]:
        """The columns with at least one test that found drift, in order."""
        drifted = (test.column for test in self.tests if test.verdict is DriftVerdict.DRIFTED)
        return list(dict.fromkeys(drifted))

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
            return f"Drift in {', '.join(self.drifted_columns)} ({compared})."
        if self.verdict is DriftVerdict.STABLE:
            return f"No drift found in {len(self.tests)} tests ({compared})."
        lacking = dict.fromkeys(
            test.column for test in self.tests if test.verdict is DriftVerdict.NOT_ENOUGH_DATA
        )
        return f"Not enough data to judge {', '.join(lacking)} ({compared})."

    def column_verdict(self, column: str) -> DriftVerdict:
        """What can be said of `column` over all of its tests."""
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
        return [{**asdict(test), "verdict": str(test.verdict)} for test in self.tests]


@dataclass(frozen=True, slots=True)
class _Method:
    aspect: str
    test: str
    effect_name: str


_DISTANCE = _Method("distribution", "Kolmogorov-Smirnov", "Kolmogorov-Smirnov distance")
_MEAN = _Method("mean", "Welch", "difference of means")
_CATEGORIES = _Method("distribution", "chi-square", "total variation distance")
_MISSING = _Method("missing share", "chi-square", "difference of shares")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A column's test before the correction; no result means not enough data."""

    column: str
    method: _Method
    n_current: int
    n_reference: int
    result: TestResult | None
    remark: str = ""


def drift(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    config: DriftConfig | None = None,
) -> DriftReport:
    """Compares a window (`frames.current_frame`) with the reference of the version that served it.

    Inputs: Kolmogorov-Smirnov for numeric columns, chi-square for categorical ones (values outside
    the spec's categories count as one category of their own), chi-square of missing and present for
    every column. Prediction: chi-square. Confidence: Welch's test of the mean, because the
    reference's confidences are out-of-fold, from models that differ from the one that serves: the
    shape of their distribution differs without any drift, their mean, which estimates the accuracy,
    hardly does. p-values are adjusted over all tests of the window by Benjamini and Hochberg.

    Raises:
        UserError: the reference lacks a column that the spec names.
    """
    config = config or DriftConfig()
    needed = [*spec.input_names, PREDICTION, CONFIDENCE]
    lacking = [name for name in needed if name not in reference]
    if lacking:
        raise UserError(
            f"The reference lacks the column {', '.join(lacking)}; register the version again."
        )
    comparisons = list(_comparisons(current, reference, spec, config))
    tested = [c.result.p_value for c in comparisons if c.result is not None]
    adjusted = iter(benjamini_hochberg(np.array(tested)))
    tests = tuple(
        _judged(c, None if c.result is None else float(next(adjusted)), config) for c in comparisons
    )
    return DriftReport(len(current), len(reference), tests)


def _comparisons(
    current: "pd.DataFrame", reference: "pd.DataFrame", spec: DataSpec, config: DriftConfig
) -> Iterator[_Comparison]:
    def both(name: str) -> tuple["pd.Series[Any]", "pd.Series[Any]"]:
        return current[name], reference[name]

    for column in spec.columns:
        now, then = both(column.name)
        if isinstance(column, CategoricalColumn):
            yield _categories(column.name, now, then, column.categories, config)
        else:
            yield _quantity(column.name, _DISTANCE, kolmogorov_smirnov, now, then, config)
        yield _missing(column.name, now, then, config)
    yield _categories(PREDICTION, *both(PREDICTION), spec.target.classes, config)
    yield _quantity(CONFIDENCE, _MEAN, welch, *both(CONFIDENCE), config)


def _quantity(
    name: str,
    method: _Method,
    test: Callable[[Floats, Floats], TestResult],
    now: "pd.Series[Any]",
    then: "pd.Series[Any]",
    config: DriftConfig,
) -> _Comparison:
    current, reference = now.dropna().to_numpy(float), then.dropna().to_numpy(float)
    sizes = current.size, reference.size
    if min(sizes) < config.minimum_rows:
        return _Comparison(name, method, *sizes, result=None)
    remark = f"mean {current.mean():.4g}, was {reference.mean():.4g}"
    return _Comparison(name, method, *sizes, test(current, reference), remark)


def _categories(
    name: str,
    now: "pd.Series[Any]",
    then: "pd.Series[Any]",
    categories: tuple[str, ...],
    config: DriftConfig,
) -> _Comparison:
    current, reference = _counts(now, categories), _counts(then, categories)
    sizes = int(current.sum()), int(reference.sum())
    if min(sizes) < config.minimum_rows:
        return _Comparison(name, _CATEGORIES, *sizes, result=None)
    unknown = int(current[-1])
    remark = f"{unknown} values outside the known categories" if unknown else ""
    return _Comparison(name, _CATEGORIES, *sizes, homogeneity(current, reference), remark)


def _counts(values: "pd.Series[Any]", categories: tuple[str, ...]) -> Counts:
    counts = values.value_counts()
    known = [int(counts.get(category, 0)) for category in categories]
    return np.array([*known, int(counts.sum()) - sum(known)])


def _missing(
    name: str, now: "pd.Series[Any]", then: "pd.Series[Any]", config: DriftConfig
) -> _Comparison:
    sizes = len(now), len(then)
    if min(sizes) < config.minimum_rows:
        return _Comparison(name, _MISSING, *sizes, result=None)
    current = np.array([now.isna().sum(), now.notna().sum()])
    reference = np.array([then.isna().sum(), then.notna().sum()])
    remark = f"{now.isna().mean():.1%} missing, was {then.isna().mean():.1%}"
    return _Comparison(name, _MISSING, *sizes, homogeneity(current, reference), remark)


def _judged(comparison: _Comparison, adjusted: float | None, config: DriftConfig) -> DriftTest:
    verdict, why = _verdict(comparison, adjusted, config)
    method, result = comparison.method, comparison.result
    return DriftTest(
        column=comparison.column,
        aspect=method.aspect,
        test=method.test,
        effect_name=method.effect_name,
        n_current=comparison.n_current,
        n_reference=comparison.n_reference,
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
    comparison: _Comparison, adjusted: float | None, config: DriftConfig
) -> tuple[DriftVerdict, str]:
    if comparison.result is None or adjusted is None:
        return DriftVerdict.NOT_ENOUGH_DATA, (
            f"{comparison.n_current} values in the window and {comparison.n_reference} in the "
            f"reference; a verdict needs {config.minimum_rows} in each"
        )
    effect = comparison.result.effect
    significant, large = adjusted <= config.alpha, effect >= config.minimum_effect
    reasons = [
        f"adjusted p {adjusted:.2g} is {'at most' if significant else 'above'} {config.alpha:g}",
        f"{comparison.method.effect_name} {effect:.2g} is "
        f"{'at least' if large else 'below'} {config.minimum_effect:g}",
        comparison.remark,
    ]
    verdict = DriftVerdict.DRIFTED if significant and large else DriftVerdict.STABLE
    return verdict, "; ".join(filter(None, reasons))
