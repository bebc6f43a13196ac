"""Scenarios: their evaluation, their catalog, and one of them run."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlschool_dagster.alerting.channels import apprise_channels
from mlschool_dagster.alerting.incidents import NotificationKind
from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.local.scenarios.catalog import SCENARIOS
from mlschool_dagster.local.scenarios.command import table
from mlschool_dagster.local.scenarios.runner import MARGIN, inbox
from mlschool_dagster.local.scenarios.scenario import (
    DRIFTED,
    Alert,
    Expected,
    Hour,
    Outcome,
    Scenario,
    Verdict,
    evaluate,
)
from mlschool_dagster.monitoring.metrics import MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.monitoring.thresholds import VolumeConfig
from mlschool_dagster.monitoring.traffic import check_traffic
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster_tests.alerting.samples import notification
from mlschool_dagster_tests.platform import foreign_environment

SCENARIO = Scenario(
    description="Something drifts.",
    quiet=[Hour(), Hour()],
    changed=[Hour(), Hour()],
    expected=[
        Expected(MetricName.DRIFT_EFFECT, within=1, column=DRIFTED),
        Expected(Step.REQUESTED, within=None),
    ],
)
ALERTS = Scenario(
    description="Something fails and is mended.",
    quiet=[Hour(), Hour()],
    changed=[Hour(), Hour()],
    expected=[
        Expected(Alert("Check a on b", "did not pass"), within=1),
        Expected(Alert("Check a on b", "passes again"), within=2),
    ],
)


def judged(
    first: Mapping[tuple[str, str], int],
    *versions: str,
    unanswered: int = 0,
    scenario: Scenario = SCENARIO,
    alerts: Sequence[tuple[int, str]] = (),
) -> list[bool]:
    outcome = Outcome(first, alerts, versions or ("1", "1"), requests=10, unanswered=unanswered)
    return [verdict.holds for verdict in evaluate(scenario, outcome, "mass")]


@pytest.mark.parametrize(
    ("first", "holds"),
    [
        ({("drift_effect", "mass"): 2}, [True, True]),
        ({("drift_effect", "mass"): 3}, [False, True]),
        ({("drift_effect", "mass"): 1}, [False, True]),
        ({("drift_effect", "length"): 2}, [False, True]),
        ({("drift_effect", "mass"): 2, ("requested", ""): 3}, [True, False]),
        ({}, [False, True]),
    ],
)
def test_what_happens_must_happen_in_time_and_not_before_the_change(
    first: Mapping[tuple[str, str], int], holds: list[bool]
) -> None:
    assert judged(first) == [*holds, True, True]


def test_another_version_or_a_request_without_answer_is_noticed() -> None:
    first = {("drift_effect", "mass"): 2}
    assert judged(first, "1", "2") == [True, True, False, True]
    assert judged(first, unanswered=1) == [True, True, True, False]


FAILS, RECOVERS = "Check a on b of 01:00 did not pass: 1.", "Check a on b of 02:00 passes again."


@pytest.mark.parametrize(
    ("alerts", "holds"),
    [
        ([(2, FAILS), (3, RECOVERS)], [True, True]),
        ([(2, "Check a on c did not pass."), (2, FAILS)], [True, False]),
        ([(1, FAILS), (2, FAILS), (3, RECOVERS)], [False, True]),
        ([(3, f"Still, since 01:00: {FAILS}")], [False, False]),
        ([], [False, False]),
    ],
)
def test_an_expected_alert_must_come_in_time_and_not_before_the_change(
    alerts: Sequence[tuple[int, str]], holds: list[bool]
) -> None:
    assert judged({}, scenario=ALERTS, alerts=alerts) == [*holds, True, True]


def test_the_inbox_holds_what_people_read() -> None:
    well = notification("All is well.", NotificationKind.RESOLVED)
    hostile = notification(
        "Check <a> & b did not pass.", link="http://127.0.0.1:3000/runs/1?a=1&b=2"
    )
    with inbox() as received:
        (channel,) = apprise_channels([received.url])
        channel.send([hostile, well])
        assert received.take() == ["Check <a> & b did not pass.", "All is well."]
        assert received.take() == []


def test_scenarios_expect_alerts_of_checks_that_there_are() -> None:
    graph = build_definitions().resolve_asset_graph()
    subjects = {
        f"Check {key.name} on {key.asset_key.to_user_string()}" for key in graph.asset_check_keys
    }
    expected = {
        expected.what.subject
        for scenario in SCENARIOS.values()
        for expected in scenario.expected
        if isinstance(expected.what, Alert)
    }
    assert {subject for subject in expected if subject.startswith("Check")} <= subjects


def test_the_hour_without_traffic_and_no_other_is_an_outage(tmp_path: Path) -> None:
    """The whole scenario takes long; this is the traffic check on its row counts."""
    scenario, start = SCENARIOS["outage"], Window.of(datetime(2026, 11, 19, tzinfo=UTC))
    tokens: dict[str, str] = {}
    unusual, stale = [], []
    store = open_store(f"sqlite:///{tmp_path}/captures.db")
    history = MetricsHistory(f"sqlite:///{tmp_path}/history.db")
    with closing(store), closing(history):
        for number, hour in enumerate(scenario.hours):
            window = Window(start.start + number * LENGTH)
            ids = [f"{number}-{row}" for row in range(hour.rows)]
            moment = window.start + MARGIN
            store.append([Capture(i, moment, "model", "1", {}, "yes", 0.9, {}) for i in ids])
            seen = check_traffic(store, history, tokens, window.end, VolumeConfig())
            tokens = seen.tokens
            unusual += [number] * bool(seen.findings)
            stale += [number] * (not seen.is_fresh)
    assert unusual == stale == [len(scenario.quiet)]


def test_no_scenario_expects_anything_after_its_end() -> None:
    for name, scenario in SCENARIOS.items():
        assert not scenario.hours[len(scenario.quiet) - 1].skip_settling, name
        assert not scenario.hours[-1].skip_settling, name
        for expected in scenario.expected:
            assert (expected.within or 0) <= len(scenario.changed), name


def test_the_closing_table_says_what_held() -> None:
    lines = list(table([Verdict("drift: never", "in window 1", False), Verdict("a", "b", True)]))
    assert lines == [
        "expected      what happened",
        "drift: never  in window 1    NO",
        "a             b              yes",
    ]


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mlschool_dagster.local", "scenario", *arguments],
        env=foreign_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_name_the_scenarios_are_listed() -> None:
    done = command()
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SCENARIOS)


def test_an_unknown_scenario_is_reported_in_one_sentence() -> None:
    done = command("apocalypse")
    assert done.returncode == 1
    assert done.stderr.startswith("There is no scenario 'apocalypse'; choose one of: gradual_drift")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drift_is_found_in_its_first_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = command("sudden_drift")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "drift_evidence: within 1 window" in done.stdout
    assert "NO" not in done.stdout.split()
    assert not [path for path in tmp_path.glob("mlschool-*") if path.is_dir()]
