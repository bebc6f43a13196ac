"""The dashboard page: right about what to look at, whole whatever it is given, and harmless."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.graph_objects import Figure

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.monitoring.dashboard.answers import CHECKS, Answer, State, answers
from mlschool_dagster.monitoring.dashboard.board import Board, Event, Term
from mlschool_dagster.monitoring.dashboard.page import EVENTS_LISTED, dashboard_page
from mlschool_dagster.monitoring.dashboard.segments import comparisons, worst_first
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster_tests.monitoring import traffic_month
from mlschool_dagster_tests.monitoring.samples import START

HOUR = Window(START)
HOSTILE = "</script><img src=x onerror=alert(1)> <b>&%{y}\"'"
PLOTS = 8


def board(count: int, until: int | None = None) -> Board:
    """A month of `count` windows as of its window number `until`, by default its last."""
    last = traffic_month.windows(count)[(until or count) - 1]
    return Board(
        "penguins",
        last.end,
        [metric for metric in traffic_month.all_metrics(count) if metric.window <= last],
        [
            replace(term, until=term.until if term.until and term.until <= last.end else None)
            for term in traffic_month.terms(count)
            if term.since <= last.end
        ],
        [event for event in traffic_month.changes(count) if event.at <= last.end],
        [event for event in traffic_month.promotions(count) if event.at <= last.end],
    )


def page(found: Board) -> str:
    """The page without Plotly's program, which is large and the same for all."""
    return dashboard_page(found, "")


def figures(text: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(figure) for figure in found]


def answer(found: Board, key: str) -> Answer:
    (told,) = (told for told in answers(found) if told.key == key)
    return told


def test_every_figure_is_one_of_plotlys() -> None:
    found = figures(page(board(60)))
    assert len(found) == PLOTS
    for figure in found:
        Figure(figure)


def test_the_page_reaches_for_nothing() -> None:
    text = page(board(30))
    assert "default-src 'none'" in text
    assert not re.findall(r"""\b(?:src|href)=["'](?!#)""", text)
    assert "http" not in text.replace("http-equiv", "")


def test_what_happened_is_read_off_the_page() -> None:
    text = page(board(60))
    for told in ("challenger after confirmed drift", "b81d02aa", "McNemar", "requested"):
        assert told in text


def test_quiet_windows_call_for_no_attention() -> None:
    quiet = [m for m in board(100, until=30).metrics if not m.segment]
    serving = [Term("1", START - 200 * LENGTH, None)]
    found = Board("m", START, [replace(metric, finding=False) for metric in quiet], serving)
    assert State.FINDING not in {told.state for told in answers(found)}
    assert "Nothing calls for attention." in page(found)


def test_an_endpoint_without_a_version_is_to_be_looked_at() -> None:
    ended = Board("m", START, terms=[Term("1", START - LENGTH, START)])
    assert answer(ended, "serving").state is State.FINDING


def test_confirmed_drift_names_its_columns_and_its_beginning() -> None:
    drifting = board(100, until=70)
    told = answer(drifting, "drift")
    assert told.state is State.FINDING
    assert told.headline.startswith(traffic_month.DRIFTING)
    series = drifting.series(MetricName.DRIFT_EVIDENCE)
    began = next(m for m in series if all(n.finding for n in series if n.window >= m.window))
    assert f"confirmed since {began.window.key}" in told.text
    assert "Look at: " in page(drifting)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (MetricName.REALISED_ACCURACY, "accuracy"),
        (MetricName.ESTIMATED_ACCURACY, "accuracy"),
        (MetricName.ROWS, "traffic"),
        (MetricName.REFUSED_SHARE, "traffic"),
        (MetricName.QUALITY_FINDINGS, "quality"),
    ],
)
def test_a_finding_in_the_newest_window_is_to_be_looked_at(name: MetricName, key: str) -> None:
    known = [
        Metric(HOUR, MetricName.ROWS, 40.0, 40),
        Metric(HOUR, MetricName.QUALITY_FINDINGS, 0.0, 40),
        Metric(HOUR, MetricName.ESTIMATED_ACCURACY, 0.5, 40),
    ]
    found = [m for m in known if m.name is not name] + [Metric(HOUR, name, 0.5, 40, finding=True)]
    assert answer(Board("m", HOUR.end, found), key).state is State.FINDING
    quiet = [replace(metric, finding=False, value=0.0) for metric in found]
    assert answer(Board("m", HOUR.end, quiet), key).state is State.FINE


@pytest.mark.parametrize(("section", "checks"), CHECKS.items())
def test_a_failed_check_is_never_shown_as_fine(section: str, checks: Sequence[str]) -> None:
    for check in checks:
        quiet = [m for m in board(100, until=30).metrics if not m.finding]
        newest = quiet[-1].window
        failed = Metric(newest, MetricName.CHECK, 0.0, 0, column=check, finding=True)
        told = answer(Board("m", START, [*quiet, failed]), section)
        assert told.state is State.FINDING
        assert f"{check} in {newest.key}" in told.text
        # What it cannot tell of a later window leaves it as it is.
        later = Metric(Window(newest.end), MetricName.CHECK, None, 0, column=check)
        assert answer(Board("m", START, [*quiet, failed, later]), section) == told


def test_the_page_finds_nothing_that_the_checks_did_not() -> None:
    segments = [errors("a=x", 1, 50), errors("a=y", 30, 50)]
    everyone = Metric(HOUR, MetricName.REALISED_ACCURACY, 0.9, 400)
    passed = Metric(HOUR, MetricName.CHECK, 1.0, 0, column="segments")
    told = answer(Board("m", HOUR.end, [everyone, *segments, passed]), "segments")
    assert (told.state, told.headline) == (State.FINE, "a = y")


def test_an_accuracy_far_below_what_was_expected_is_no_fine() -> None:
    found = [
        Metric(HOUR, MetricName.REALISED_ACCURACY, 0.8, 200, lower=0.74, upper=0.85),
        Metric(HOUR, MetricName.ESTIMATE_OF_LABELLED, 0.98, 200, lower=0.95, upper=1, finding=True),
        Metric(HOUR, MetricName.CROSS_VALIDATED_ACCURACY, 0.98, 344, finding=True),
    ]
    doubtful = Board("m", HOUR.end, found)
    told = answer(doubtful, "accuracy")
    assert told.state is State.DOUBT
    assert "the confidence of the same rows (98.0 % (95.0 % to 100.0 %)) and cross" in told.text
    assert "Keep an eye on: accuracy (80.0 %)" in page(doubtful)
    assert "Nothing calls for attention" not in page(doubtful)


def test_nothing_known_is_never_fine() -> None:
    assert {told.state for told in answers(Board("m", START))} == {State.UNKNOWN}
    too_few = Metric(HOUR, MetricName.REALISED_ACCURACY, None, 3)
    assert answer(Board("m", HOUR.end, [too_few]), "accuracy").state is State.UNKNOWN


def test_drift_that_no_column_shows_is_told_all_the_same() -> None:
    found = [
        Metric(HOUR, MetricName.DRIFT_EFFECT, 0.01, 200, column="a"),
        Metric(HOUR, MetricName.DRIFT_EFFECT, 0.4, 200, finding=True),
    ]
    told = answer(Board("m", HOUR.end, found), "drift")
    assert told.state is State.FINDING
    assert "all columns together" in told.text


def errors(segment: str, wrong: int, rows: int, window: Window = HOUR) -> Metric:
    return Metric(window, MetricName.ERROR_SHARE, wrong / rows, rows, segment=segment)


def test_segments_add_up_over_windows_and_small_ones_are_not_blamed() -> None:
    later = Window(HOUR.end)
    found = Board(
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
    ranked = worst_first(found)
    assert [(s.column, s.value, s.wrong, s.rows) for s in ranked] == [
        ("a", "y", 25, 100),
        ("a", "x", 4, 100),
    ]
    (difference,) = comparisons(ranked)
    assert difference.gap == pytest.approx(0.21)
    assert difference.clearly
    told = answer(found, "segments")
    assert (told.state, told.headline) == (State.FINDING, "a = y")


def test_lists_of_events_are_bounded() -> None:
    many = [Event(START, "canary", "canary", "1", "", f"reason {n}.") for n in range(1000)]
    text = page(Board("m", START, changes=many, promotions=many))
    assert len(re.findall(r"<td>reason \d+", text)) == 2 * EVENTS_LISTED
    assert "reason 999." in text


def test_a_month_of_hours_weighs_little_beside_plotly() -> None:
    assert len(page(board(720))) < 2_000_000


def test_a_gap_between_windows_is_no_line() -> None:
    far = Window(HOUR.start + 50 * LENGTH)
    found = [
        Metric(w, MetricName.ESTIMATED_ACCURACY, 0.9, 9, lower=0.8, upper=1) for w in (HOUR, far)
    ]
    (figure,) = figures(page(Board("m", far.end, found)))
    (line,) = (trace for trace in figure["data"] if trace["name"].startswith("estimated"))
    assert line["y"] == [0.9, None, None, 0.9]


def test_a_single_window_is_drawn_an_hour_wide() -> None:
    found = [
        Metric(HOUR, MetricName.ROWS, 40.0, 40),
        Metric(HOUR, MetricName.DRIFT_EFFECT, 0.1, 40, column="a"),
        Metric(HOUR, MetricName.ESTIMATED_ACCURACY, 0.9, 40, threshold=0.8),
    ]
    drawn = {
        trace["name"] if "name" in trace else trace["type"]: trace
        for figure in figures(page(Board("m", HOUR.end, found)))
        for trace in figure["data"]
    }
    assert 3_000_000 < drawn["captured rows"]["width"] <= 3_600_000
    assert drawn["heatmap"]["z"] == [[None, 0.1, None]]
    assert len(set(drawn["threshold"]["x"])) == 2


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
    lane=st.sampled_from(["primary", "canary", "shadow", "candidate", "promotion"]),
    what=TEXT,
    version=TEXT,
    by=TEXT,
    why=TEXT,
)
TERMS = st.builds(Term, version=TEXT, since=INSTANTS, until=st.none() | INSTANTS)
BOARDS = st.builds(
    Board,
    model=TEXT,
    now=INSTANTS,
    metrics=st.lists(METRICS, max_size=40).map(
        lambda found: sorted(found, key=lambda metric: metric.window)
    ),
    terms=st.lists(TERMS, max_size=3),
    changes=st.lists(EVENTS, max_size=3),
    promotions=st.lists(EVENTS, max_size=3),
)


@settings(max_examples=60)
@given(found=BOARDS)
def test_whatever_is_known_the_page_is_whole_and_harmless(found: Board) -> None:
    text = page(found)
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
