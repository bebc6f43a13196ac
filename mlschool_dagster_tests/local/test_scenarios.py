"""Stories: what is expected of the platform, judged as it is told; and one of them, played."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlschool_dagster.local.scenario import table
from mlschool_dagster.local.scenario_stories import STORIES
from mlschool_dagster.local.scenario_story import (
    DRIFTED,
    Expected,
    Hour,
    Judged,
    Outcome,
    Story,
    judge,
)
from mlschool_dagster.monitoring.metrics import MetricName
from mlschool_dagster.promotion.episode import Step
from mlschool_dagster_tests.platform import foreign_environment

STORY = Story(
    tells="Something drifts.",
    quiet=[Hour(), Hour()],
    changed=[Hour(), Hour()],
    expected=[
        Expected(MetricName.DRIFT_EFFECT, within=1, column=DRIFTED),
        Expected(Step.REQUESTED, within=None),
    ],
)


def judged(first: Mapping[tuple[str, str], int], *versions: str, unanswered: int = 0) -> list[bool]:
    outcome = Outcome(first, versions or ("1", "1"), requests=10, unanswered=unanswered)
    return [found.holds for found in judge(STORY, outcome, "mass")]


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
    found = {("drift_effect", "mass"): 2}
    assert judged(found, "1", "2") == [True, True, False, True]
    assert judged(found, unanswered=1) == [True, True, True, False]


def test_no_story_expects_anything_after_its_end() -> None:
    for name, story in STORIES.items():
        assert not story.hours[len(story.quiet) - 1].passes_by, name
        assert not story.hours[-1].passes_by, name
        for expected in story.expected:
            assert (expected.within or 0) <= len(story.changed), name


def test_the_closing_table_says_what_held() -> None:
    lines = list(table([Judged("drift: never", "in window 1", False), Judged("a", "b", True)]))
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


def test_without_a_name_the_stories_are_listed() -> None:
    done = command()
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(STORIES)


def test_an_unknown_story_is_told_in_one_sentence() -> None:
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
    assert not [*tmp_path.glob("mlschool-*")]
