"""The dashboard page: right about health, whole whatever it is given, and harmless."""

import json
import math
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.graph_objects import Figure

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.dashboard.data import (
    DashboardData,
    Event,
    ServingPeriod,
    worst_first,
)
from mlschool_dagster.monitoring.dashboard.figures import EVIDENCE_LINES, FEW_WINDOWS, ROWS_DRAWN
from mlschool_dagster.monitoring.dashboard.health import (
    RULES,
    STRIP_CELLS,
    Section,
    Status,
    health_summary,
)
from mlschool_dagster.monitoring.dashboard.page import EVENTS_LISTED, FIGURES, dashboard_page
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster_tests.monitoring import traffic_month
from mlschool_dagster_tests.monitoring.samples import START
from mlschool_dagster_tests.monitoring.traffic_month import dashboard_data as month

HOUR = Window(START)
HOSTILE = "</script><img src=x onerror=alert(1)> <b>&%{y}\"'"


def page(data: DashboardData) -> str:
    """The page without Plotly's program, which is large and the same for all."""
    return dashboard_page(data, "")


def figures(text: str) -> list[dict[str, Any]]:
    result = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(figure) for figure in result]


def section(data: DashboardData, key: str) -> Section:
    (result,) = (result for result in health_summary(data).sections if result.key == key)
    return result


def check(name: str, passed: bool | None, window: Window = HOUR) -> Metric:
    value = None if passed is None else float(passed)
    return Metric(window, MetricName.CHECK, value, 0, column=name, finding=passed is False)


def verdict(name: str, passed: bool, window: Window = HOUR) -> list[Metric]:
    """What the history has of a verdict: a check by name, or a metric."""
    if not isinstance(name, MetricName):
        return [check(name, passed, window)]
    measured = Metric(window, MetricName.REALISED_ACCURACY, 0.8, 200, lower=0.74, upper=0.85)
    return [measured, Metric(window, name, 0.98, 344, lower=0.95, upper=1.0, finding=not passed)]


def test_every_figure_is_one_of_plotlys() -> None:
    result = figures(page(month(60)))
    assert len(result) == len(FIGURES)
    for figure in result:
        Figure(figure)


def test_the_page_loads_nothing_and_links_to_reports_only() -> None:
    text = page(month(100, until=70))
    assert "default-src 'none'" in text
    links = re.findall(r"""\b(?:src|href)=["']([^"']*)""", text)
    reports = {link for link in links if not link.startswith("#")}
    assert reports
    assert all(re.fullmatch(r"windows/[\dT-]+/\w+_report\.html", link) for link in reports)
    assert "http" not in text.replace("http-equiv", "")


def test_deployments_and_rollouts_are_listed_with_their_reasons() -> None:
    text = page(month(60))
    for shown in ("challenger after confirmed drift", "b81d02aa", "McNemar", "requested"):
        assert shown in text


def test_quiet_windows_are_healthy_since_the_first_of_them() -> None:
    data = month(100, until=30)
    health = health_summary(data)
    assert (health.status, health.since) == (Status.HEALTHY, data.windows[0].start)
    assert not health.problems
    assert "What to do" not in page(data)


def test_healthy_counts_from_the_end_of_the_last_problem() -> None:
    data = month(100, until=50)
    assert health_summary(data).status is Status.HEALTHY
    broken = [m.window for m in data.series(MetricName.CHECK, "data_quality") if m.finding]
    assert health_summary(data).since == broken[-1].end


def test_an_endpoint_without_a_version_is_critical() -> None:
    ended = DashboardData("m", START, periods=[ServingPeriod("1", START - LENGTH, START)])
    health = health_summary(ended)
    assert (health.status, health.since) == (Status.CRITICAL, START)
    assert "No version serves" in page(ended)


def test_confirmed_drift_names_its_columns_its_beginning_and_the_report() -> None:
    data = month(100, until=70)
    drift = section(data, "drift")
    assert drift.status is Status.CRITICAL
    assert drift.value.startswith(traffic_month.DRIFTING)
    series = data.series(MetricName.CHECK, "no_confirmed_drift")
    began = next(m for m in series if all(n.finding for n in series if n.window >= m.window))
    assert drift.since == began.window.start
    assert drift.report == f"windows/{data.windows[-1].folder}/drift_report.html"
    assert "Drift is confirmed" in page(data)


RULES_BY_VERDICT = [
    (key, status, verdicts[0], name)
    for key, rules in RULES.items()
    for status, verdicts in rules
    for name in verdicts
]


@pytest.mark.parametrize(("key", "status", "problem", "name"), RULES_BY_VERDICT)
def test_a_failed_verdict_is_a_problem_with_a_remedy(
    key: str, status: Status, problem: str, name: str
) -> None:
    good, later = Window(HOUR.start - LENGTH), Window(HOUR.end)
    metrics = [*verdict(name, True, good), *verdict(name, False)]
    failed = section(DashboardData("m", START, metrics), key)
    assert (failed.status, failed.problem, failed.since) == (status, problem, HOUR.start)
    assert "What to do" in page(DashboardData("m", START, metrics))
    # An undecided outcome changes nothing; the next good one ends it.
    undecided = [] if isinstance(name, MetricName) else [check(name, None, later)]
    assert section(DashboardData("m", START, [*metrics, *undecided]), key).problem == problem
    mended = [*metrics, *verdict(name, True, later)]
    assert not section(DashboardData("m", START, mended), key).problem


def test_the_page_finds_nothing_that_the_checks_did_not() -> None:
    shares = [errors("a=x", 1, 50), errors("a=y", 30, 50)]
    everyone = Metric(HOUR, MetricName.REALISED_ACCURACY, 0.9, 400)
    data = DashboardData("m", HOUR.end, [everyone, *shares, check("segments", True)])
    result = section(data, "segments")
    assert (result.status, result.value) == (Status.HEALTHY, "a = y")


def test_an_accuracy_below_what_was_promised_is_a_warning_that_says_so() -> None:
    metrics = [
        check("accuracy", True),
        Metric(HOUR, MetricName.REALISED_ACCURACY, 0.8, 200, lower=0.74, upper=0.85),
        Metric(
            HOUR, MetricName.ESTIMATE_OF_LABELLED, 0.955, 200, lower=0.93, upper=0.98, finding=True
        ),
        Metric(HOUR, MetricName.CROSS_VALIDATED_ACCURACY, 0.991, 344, finding=True),
    ]
    data = DashboardData("m", HOUR.end, metrics)
    accuracy = section(data, "accuracy")
    assert accuracy.status is Status.WARNING
    assert "confidence of the same rows: 95.5% (93.0% to 98.0%)" in accuracy.text
    assert "cross-validation: 99.1%" in accuracy.text
    text = page(data)
    assert "lower than promised" in text
    assert "labellers who guess" in text
    assert health_summary(data).status is Status.WARNING
    # Later windows without labels leave it as it is.
    later = Window(HOUR.end)
    unlabelled = [
        Metric(later, MetricName.REALISED_ACCURACY, None, 0),
        Metric(later, MetricName.CROSS_VALIDATED_ACCURACY, 0.991, 344),
    ]
    unchanged = section(replace(data, metrics=[*metrics, *unlabelled]), "accuracy")
    assert replace(unchanged, strip=accuracy.strip) == accuracy


def test_nothing_known_is_never_healthy() -> None:
    health = health_summary(DashboardData("m", START))
    assert {result.status for result in health.sections} == {Status.UNKNOWN}
    assert (health.status, health.since) == (Status.UNKNOWN, None)
    cross_validated = Metric(HOUR, MetricName.CROSS_VALIDATED_ACCURACY, 0.99, 344)
    few = [Metric(HOUR, MetricName.REALISED_ACCURACY, None, 3), cross_validated]
    data = DashboardData("m", HOUR.end, [*few, check("accuracy", None)])
    assert section(data, "accuracy").status is Status.UNKNOWN


def test_drift_that_no_column_shows_is_named_all_the_same() -> None:
    metrics = [
        Metric(HOUR, MetricName.DRIFT_EFFECT, 0.01, 200, column="a"),
        Metric(HOUR, MetricName.DRIFT_EFFECT, 0.4, 200, finding=True),
        check("no_drift", False),
    ]
    drift = section(DashboardData("m", HOUR.end, metrics), "drift")
    assert drift.status is Status.WARNING
    assert drift.text.startswith("all columns together drifted")


def test_a_strip_has_the_worst_status_of_its_windows() -> None:
    strip = section(month(720), "drift").strip
    assert len(strip) <= STRIP_CELLS
    assert {Status.CRITICAL, Status.HEALTHY} <= set(strip)
    assert section(month(3), "drift").strip[-1] is section(month(3), "drift").status


def errors(segment: str, wrong: int, rows: int, window: Window = HOUR) -> Metric:
    return Metric(window, MetricName.ERROR_SHARE, wrong / rows, rows, segment=segment)


def test_segments_add_up_over_windows_and_small_ones_are_left_out() -> None:
    later = Window(HOUR.end)
    data = DashboardData(
        "m",
        later.end,
        [
            Metric(HOUR, MetricName.REALISED_ACCURACY, 0.9, 200),
            errors("a=x", 1, 50),
            errors("a=y", 12, 50),
            errors("b=few", 9, 10),
            errors("a=x", 3, 50, later),
            errors("a=y", 13, 50, later),
        ],
    )
    ranked = worst_first(data)
    assert [(s.name, s.wrong, s.rows) for s in ranked] == [("a = y", 25, 100), ("a = x", 4, 100)]
    assert ranked[0].is_worse_than(ranked[1])
    assert section(data, "segments").value == "a = y"


def test_the_list_of_events_is_bounded() -> None:
    many = [Event(START, "canary", "canary", "1", "", f"reason {n}.") for n in range(1000)]
    data = DashboardData("m", START, periods=[ServingPeriod("1", START, None)], events=many)
    text = page(data)
    assert len(re.findall(r"<td>reason \d+", text)) == EVENTS_LISTED
    assert "reason 999." in text


def test_a_month_of_hours_weighs_little_beside_plotly() -> None:
    assert len(page(month(720))) < 2_000_000


def test_a_gap_between_windows_is_no_line() -> None:
    far = Window(HOUR.start + 50 * LENGTH)
    metrics = [
        Metric(w, MetricName.ESTIMATED_ACCURACY, 0.9, 9, lower=0.8, upper=1) for w in (HOUR, far)
    ]
    (figure,) = figures(page(DashboardData("m", far.end, metrics)))
    (line,) = (trace for trace in figure["data"] if trace.get("name") == "estimated")
    assert line["y"] == [0.9, None, None, 0.9]


def test_a_single_window_has_no_axis_of_empty_hours() -> None:
    result = figures(page(month(1)))
    over_windows = [figure for figure in result if "meta" in figure["layout"]]
    assert [figure["data"][0]["type"] for figure in over_windows] == ["heatmap", "heatmap"]
    for figure in over_windows:
        assert len(figure["layout"]["xaxis"]["tickvals"]) == 1
        (values,) = {len([v for v in row if v is not None]) for row in figure["data"][0]["z"]}
        assert values == 1
        assert figure["data"][0]["texttemplate"]


@pytest.mark.parametrize("count", [1, 2, FEW_WINDOWS, 500])
def test_labels_of_deployments_do_not_overlap(count: int) -> None:
    data = month(count)
    start, end = data.windows[0].start, data.windows[-1].end
    moments = [start + (end - start) * n / 100 for n in range(100)]
    periods = [
        ServingPeriod(str(n), since, until)
        for n, (since, until) in enumerate(zip(moments, [*moments[1:], None], strict=True))
    ]
    for figure in figures(page(replace(data, periods=periods))):
        labels = figure["layout"].get("annotations", [])
        if "meta" in figure["layout"]:
            assert 1 < len(labels) <= 20
            assert labels[0]["text"] == "v99"


def test_many_columns_are_cut_to_those_that_matter() -> None:
    metrics = [
        Metric(w, name, 0.9 if number == 41 else 0.1, 400, column=f"a_rather_long_name_{number}")
        for w in (HOUR, Window(HOUR.end))
        for number in range(60)
        for name in (MetricName.DRIFT_EFFECT, MetricName.DRIFT_EVIDENCE, MetricName.MISSING_SHARE)
    ]
    evidence, effects, faults = figures(page(DashboardData("m", START, metrics)))
    assert len([trace for trace in evidence["data"] if trace.get("line")]) <= EVIDENCE_LINES + 1
    for figure in (effects, faults):
        assert len(figure["data"][0]["z"]) == ROWS_DRAWN
        names = figure["layout"]["yaxis"]["ticktext"]
        assert (len(set(names)), names[0][-3:]) == (ROWS_DRAWN, "_41")


TEXT = st.one_of(st.sampled_from(["", "a", HOSTILE, "x" * 256, "=", "ä=ö"]), st.text(max_size=8))
NUMBERS = st.one_of(st.none(), st.floats(), st.floats(0, 1))
METRICS = st.builds(
    Metric,
    window=st.integers(-50, 50).map(lambda hours: Window(START + hours * LENGTH)),
    name=st.sampled_from(MetricName),
    value=NUMBERS,
    rows=st.integers(0, 10**6),
    column=TEXT,
    segment=TEXT,
    version=st.sampled_from(["", "1"]),
    lower=NUMBERS,
    upper=NUMBERS,
    threshold=NUMBERS,
    finding=st.booleans(),
)
INSTANTS = st.integers(-100, 100).map(lambda hours: START + timedelta(hours=hours))
EVENTS = st.builds(
    Event,
    at=INSTANTS,
    subject=st.sampled_from(["primary", "canary", "shadow", "rollout"]),
    what=TEXT,
    version=TEXT,
    by=TEXT,
    why=TEXT,
)
PERIODS = st.builds(ServingPeriod, version=TEXT, since=INSTANTS, until=st.none() | INSTANTS)
DATA = st.builds(
    DashboardData,
    model=TEXT,
    now=INSTANTS,
    metrics=st.lists(METRICS, max_size=40).map(
        lambda result: sorted(result, key=lambda metric: metric.window)
    ),
    periods=st.lists(PERIODS, max_size=3),
    events=st.lists(EVENTS, max_size=3),
)


@settings(max_examples=60)
@given(data=DATA)
def test_whatever_is_known_the_page_is_whole_and_harmless(data: DashboardData) -> None:
    text = page(data)
    assert "<img" not in text
    assert text.count("</script>") == text.count("<script") == len(figures(text)) + 2
    for figure in figures(text):
        assert not [number for number in numbers(figure) if not math.isfinite(number)]


def numbers(document: Any) -> list[float]:
    if isinstance(document, dict):
        return [number for value in document.values() for number in numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in numbers(value)]
    return [document] if isinstance(document, float) else []
