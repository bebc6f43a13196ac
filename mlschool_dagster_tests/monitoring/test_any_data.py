"""Whatever data are like, each report has its numbers, and its verdict does not hang on units."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import (
    CategoricalColumn,
    Contract,
    DataSpec,
    NumericColumn,
    Target,
    probability_column,
)
from mlschool_dagster.monitoring import plots
from mlschool_dagster.monitoring.drift import (
    DriftReport,
    DriftVerdict,
    drift,
    drift_by_segment,
    drift_from,
)
from mlschool_dagster.monitoring.e_values import CompositeNull, evidence
from mlschool_dagster.monitoring.metric_records import (
    drift_metrics,
    performance_metrics,
    quality_metrics,
)
from mlschool_dagster.monitoring.performance import performance
from mlschool_dagster.monitoring.quality import quality
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
from mlschool_dagster.monitoring.report_pages import (
    Subject,
    write_drift_page,
    write_performance_page,
    write_quality_page,
)
from mlschool_dagster.monitoring.thresholds import DriftConfig
from mlschool_dagster_tests.monitoring.samples import START, as_window

Generator = np.random.Generator
NAMES = ("$a_{b}$", "_x", "<script>", "größe", "{y}", "100 %", "None", "a=b", "\\frac", "x" * 300)
CLASSES = ("None", "nan", "$10_to_$20")

NUMBERS: dict[str, Callable[[Generator, int], object]] = {
    "normal": lambda rng, n: rng.normal(50, 10, n),
    "constant": lambda _, n: np.full(n, 39.1),
    "nearly constant": lambda rng, n: 39.1 + 1e-13 * (rng.random(n) < 0.01),
    "mostly zero": lambda rng, n: rng.binomial(1, 0.01, n) * rng.normal(50, 5, n),
    "whole": lambda rng, n: rng.integers(0, 4, n).astype(float),
    "yes or no": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "heavy tails": lambda rng, n: np.exp(rng.normal(0, 3, n)),
    "largest": lambda rng, n: rng.normal(0, 1, n) * 1e300,
    "from least to largest": lambda rng, n: 10.0 ** rng.uniform(-300, 300, n),
    "least": lambda rng, n: rng.normal(0, 1, n) * 1e-300,
    "far from zero": lambda rng, n: 1e12 + rng.normal(0, 1, n),
    "missing": lambda _, n: np.full(n, np.nan),
    "half missing": lambda rng, n: np.where(rng.random(n) < 0.5, np.nan, rng.normal(0, 1, n)),
    "infinite": lambda rng, n: np.where(rng.random(n) < 0.1, np.inf, rng.normal(0, 1, n)),
}
WORDS: dict[str, Callable[[Generator, int], object]] = {
    "even": lambda rng, n: rng.choice(["a", "$b_$", "<i>"], n),
    "rare": lambda rng, n: np.where(rng.random(n) < 0.005, "a", "<i>"),
    "always": lambda _, n: np.full(n, "a", dtype=object),
    "unknown": lambda rng, n: np.array(
        [f"$\\{{{k}" for k in rng.integers(0, 10**6, n)], dtype=object
    ),
    "absent": lambda _, n: np.full(n, None, dtype=object),
}


def spec_of(numeric: int, categorical: int) -> DataSpec:
    """So many columns of each kind, with the oddest names and no idea of a range."""
    names = [*NAMES, *(f"column {place}" for place in range(300))]
    return DataSpec(
        "$odd_{data}$",
        "",
        (
            *(NumericColumn(n, "", -np.inf, np.inf, "$_", True) for n in names[:numeric]),
            *(
                CategoricalColumn(n, "", ("a", "$b_$", "<i>"), True, True)
                for n in names[numeric : numeric + categorical]
            ),
        ),
        Target("target", CLASSES),
        Contract(1, 0.1, 1.0),
        tuple(names[numeric : numeric + min(1, categorical)]),
    )


def table(spec: DataSpec, kinds: list[str], rows: int, seed: int) -> pd.DataFrame:
    """Rows whose columns are of these kinds, in turn."""
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {}
    for place, column in enumerate(spec.columns):
        known = NUMBERS if isinstance(column, NumericColumn) else WORDS
        of_kind = [kind for kind in kinds if kind in known] or list(known)
        columns[column.name] = known[of_kind[place % len(of_kind)]](rng, rows)
    answers = rng.integers(0, 3, rows)
    confidence = 1 - rng.beta(0.5, 10, rows) / 2
    frame = pd.DataFrame(columns)
    frame["target"] = [CLASSES[answer] for answer in answers]
    frame["prediction"] = [CLASSES[answer] for answer in (answers + (confidence < 0.8)) % 3]
    frame["confidence"] = confidence
    return frame.assign(**{probability_column(name): confidence for name in CLASSES})


def labels_of(window: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "event_id": window["event_id"],
            "label": window["target"].astype(object),
            "labelled_at": window["captured_at"],
            "source": "test",
        }
    )


def reported(window: pd.DataFrame, reference: pd.DataFrame, spec: DataSpec) -> DriftReport:
    """All numbers of all three reports, which are JSON."""
    baseline = ReferenceProfile(reference, spec)
    summary = baseline.summary([window])
    result = drift_from(baseline, summary, DriftConfig())
    e_values = CompositeNull(baseline, DriftConfig()).e_values(summary)
    gathered = evidence([e_values], 0.05)
    judged = quality([window], reference, spec, {"malformed": 1})
    fared = performance([window], [labels_of(window)], spec, {})
    metrics = [
        *drift_metrics(Window(START), "1", result, e_values, gathered),
        *performance_metrics(Window(START), fared, (1, 2)),
        *quality_metrics(Window(START), judged, spec),
    ]
    numbers = [n for m in metrics for n in (m.value, m.lower, m.upper) if n is not None]
    assert np.isfinite(numbers).all()
    for report in (result, judged, fared):
        json.dumps(report.to_dict(), allow_nan=False)
        assert report.summary
    return result


KINDS = st.lists(st.sampled_from([*NUMBERS, *WORDS]), max_size=5)
ALL = [*NUMBERS, *WORDS]


@settings(max_examples=25)
@given(
    then=KINDS,
    now=KINDS,
    numeric=st.integers(0, 6),
    categorical=st.integers(0, 3),
    rows=st.sampled_from([0, 1, 2, 35, 200]),
    reference_rows=st.sampled_from([2, 40, 300]),
    seed=st.integers(0, 100),
)
@example(ALL, ALL, len(NUMBERS), len(WORDS), 200, 300, 0)
@example(ALL, ALL[::-1], len(NUMBERS), len(WORDS), 200, 300, 0)
@example(["mostly zero"], ["mostly zero"], 3, 0, 200, 300, 1)
@example([], [], 0, 2, 200, 300, 1)
@example([], [], 1, 0, 200, 300, 1)
def test_every_report_has_its_numbers_whatever_the_data(
    then: list[str],
    now: list[str],
    numeric: int,
    categorical: int,
    rows: int,
    reference_rows: int,
    seed: int,
) -> None:
    spec = spec_of(max(numeric, 1 - categorical), categorical)
    reference = table(spec, then, reference_rows, seed)
    result = reported(as_window(table(spec, now, rows, seed + 1)), reference, spec)
    if min(rows, reference_rows) < DriftConfig().minimum_rows:
        assert result.verdict is DriftVerdict.NOT_ENOUGH_DATA


@pytest.mark.slow
def test_two_hundred_columns_have_their_numbers() -> None:
    spec = spec_of(170, 30)
    kinds = ["normal", "mostly zero", "whole", "heavy tails", "constant", "even", "rare"]
    reference = table(spec, kinds, 300, 0)
    assert reported(as_window(table(spec, kinds, 500, 1)), reference, spec).verdict is (
        DriftVerdict.STABLE
    )
    moved = table(spec, kinds, 500, 1)
    moved["column 100"] += 2 * moved["column 100"].std() + 1
    assert "column 100" in reported(as_window(moved), reference, spec).drifted_columns


@pytest.mark.slow
def test_every_page_and_picture_of_such_data_is_there(tmp_path: Path) -> None:
    spec = spec_of(len(NUMBERS), len(WORDS))
    reference, subject = table(spec, ALL, 300, 0), Subject(spec.name, "1", "now", "then")
    for name, now in {"same": ALL, "other": ALL[::-1]}.items():
        window = as_window(table(spec, now, 120, 1))
        result = drift(window, reference, spec)
        judged = quality([window], reference, spec)
        fared = performance([window], [labels_of(window)], spec, {})
        path = tmp_path / f"{name}.html"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for lacking in (
                write_quality_page(window, reference, spec, subject, judged, path),
                write_drift_page(window, reference, spec, subject, result, path),
                write_performance_page(reference, spec, subject, fared, path),
            ):
                assert lacking == ""
                text = path.read_text(encoding="utf-8")
                assert "<script>:" not in text
                assert text.count("<body>") == 1
            pictures = [
                plots.distributions(window, reference, spec, result),
                plots.missing_shares(judged),
                plots.accuracy(fared),
            ]
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        assert isinstance(drift_by_segment(window, reference, spec), list)


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["normal", "mostly zero", "whole", "heavy tails", "half missing"]),
    power=st.integers(-40, 40),
    upside_down=st.booleans(),
    moved=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_verdict_is_the_same_in_any_unit(
    kind: str, power: int, upside_down: bool, moved: bool, seed: int
) -> None:
    """Units are powers of two here, so that no two values become equal by rounding."""
    spec = spec_of(2, 1)
    column = spec.numeric[0].name
    reference = table(spec, [kind, "normal", "even"], 200, seed)
    window = as_window(table(spec, [kind, "normal", "even"], 150, seed + 1))
    if moved:
        window[column] += 0.5 * reference[column].std()
    factor = 2.0**power * (-1 if upside_down else 1)
    tests = [
        drift(
            window.assign(**{column: unit * window[column]}),
            reference.assign(**{column: unit * reference[column]}),
            spec,
        ).tests
        for unit in (1.0, factor)
    ]
    for one, other in zip(*tests, strict=True):
        assert (one.column, one.aspect, one.verdict) == (other.column, other.aspect, other.verdict)
        if one.effect is not None:
            assert other.effect == pytest.approx(one.effect, rel=1e-6, abs=1e-9)


def test_a_shift_is_detected_however_wide_the_plausible_range() -> None:
    for width in (10.0, 2e6, 1e300, np.inf):
        spec = DataSpec(
            "wide",
            "",
            (NumericColumn("x", "", -width, width),),
            Target("target", CLASSES),
            Contract(1, 0.1, 1.0),
        )
        reference, window = table(spec, ["normal"], 344, 0), table(spec, ["normal"], 1_000, 1)
        assert drift(as_window(window), reference, spec).drifted_columns == []
        window["x"] += 2.5
        assert drift(as_window(window), reference, spec).drifted_columns == ["x"]


def test_a_column_that_hardly_varies_has_drifted_when_it_varies() -> None:
    spec = spec_of(2, 0)
    name = spec.numeric[0].name
    reference = table(spec, ["mostly zero", "normal"], 344, 0)
    quiet = as_window(table(spec, ["mostly zero", "normal"], 1_000, 1))
    assert drift(quiet, reference, spec).verdict is DriftVerdict.STABLE
    often = quiet.assign(**{name: np.where(np.arange(1_000) % 12 == 0, 50.0, quiet[name])})
    assert drift(often, reference, spec).drifted_columns == [name]
    constant = reference.assign(**{name: 7.0})
    assert drift(quiet.assign(**{name: 7.0}), constant, spec).verdict is DriftVerdict.STABLE
    assert drift(quiet.assign(**{name: 7.5}), constant, spec).drifted_columns == [name]
