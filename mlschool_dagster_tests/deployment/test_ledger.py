"""The ledger: which version served when can always be answered, and nothing happens untold."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Role
from mlschool_dagster.deployment.ledger import Action, changes, served_at, terms
from mlschool_dagster.serving.desired_state import Deployment, Plan, Release

START = datetime(2026, 11, 20, 23, tzinfo=UTC)
VERSIONS = ["1", "2", "3"]


def release(version: str | None) -> Release | None:
    return None if version is None else Release(version, Path("/versions", version))


def plan(
    primary: str | None, canary: str | None = None, shadow: str | None = None, share: float = 0.1
) -> Plan:
    return Plan(release(primary), release(canary), share if canary else 0.0, release(shadow))


def history(*steps: Plan | tuple[Plan, str]) -> list[Deployment]:
    """One deployment an hour; a step with a second part stages that version as a candidate."""
    return [
        Deployment(
            plan=step[0] if isinstance(step, tuple) else step,
            candidate=release(step[1]) if isinstance(step, tuple) else None,
            by=f"run-{hour}",
            reason="because",
            at=START + timedelta(hours=hour),
        )
        for hour, step in enumerate(steps)
    ]


def told(*steps: Plan | tuple[Plan, str]) -> list[tuple[str, str, str | None, str | None]]:
    return [
        (change.action.value, change.role.value, change.before, change.after)
        for change in changes(history(*steps))
    ]


CASES: dict[
    str, tuple[list[Plan | tuple[Plan, str]], list[tuple[str, str, str | None, str | None]]]
] = {
    "a first version is tested and deployed": (
        [(plan(None), "1"), plan("1")],
        [("staged", "candidate", None, "1"), ("deployed", "primary", None, "1")],
    ),
    "a candidate that fails is withdrawn": (
        [plan("1"), (plan("1"), "2"), plan("1")],
        [
            ("deployed", "primary", None, "1"),
            ("staged", "candidate", None, "2"),
            ("withdrawn", "candidate", "2", None),
        ],
    ),
    "a canary that becomes the primary is not withdrawn": (
        [plan("1"), plan("1", canary="2"), plan("2")],
        [
            ("deployed", "primary", None, "1"),
            ("canary", "canary", None, "2"),
            ("deployed", "primary", "1", "2"),
        ],
    ),
    "a canary is withdrawn": (
        [plan("1", canary="2"), plan("1")],
        [
            ("deployed", "primary", None, "1"),
            ("canary", "canary", None, "2"),
            ("withdrawn", "canary", "2", None),
        ],
    ),
    "a shadow comes beside the primary": (
        [plan("1"), plan("1", shadow="2")],
        [("deployed", "primary", None, "1"), ("shadow", "shadow", None, "2")],
    ),
    "going back is a roll-back, going forward again is not": (
        [plan("1"), plan("2"), plan("1"), plan("2")],
        [
            ("deployed", "primary", None, "1"),
            ("deployed", "primary", "1", "2"),
            ("rolled back", "primary", "2", "1"),
            ("deployed", "primary", "1", "2"),
        ],
    ),
    "a roll-back drops the canary": (
        [plan("1"), plan("2", canary="3"), plan("1")],
        [
            ("deployed", "primary", None, "1"),
            ("deployed", "primary", "1", "2"),
            ("canary", "canary", None, "3"),
            ("rolled back", "primary", "2", "1"),
            ("withdrawn", "canary", "3", None),
        ],
    ),
    "the same again is confirmed": (
        [plan("1"), plan("1")],
        [("deployed", "primary", None, "1"), ("confirmed", "primary", "1", "1")],
    ),
    "a version that cannot serve leaves none": (
        [plan("1"), plan(None)],
        [("deployed", "primary", None, "1"), ("withdrawn", "primary", "1", None)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_change_is_told_by_its_name(case: str) -> None:
    steps, expected = CASES[case]
    assert told(*steps) == expected


def test_a_change_says_who_wanted_it_when_and_why() -> None:
    _, second = changes(history(plan("1"), plan("2")))
    assert (second.by, second.reason) == ("run-1", "because")
    assert second.at == START + timedelta(hours=1)


def test_a_share_that_changes_is_a_change() -> None:
    steps = history(plan("1", canary="2"), plan("1", canary="2", share=0.5))
    last = changes(steps)[-1]
    assert (last.action, last.role, last.after, last.share) == (
        Action.CANARY,
        Role.CANARY,
        "2",
        0.5,
    )
    sampled = [*steps, Deployment(Plan(release("1"), sampling_share=0.2), at=START)]
    assert changes(sampled)[-1].share == 0.2


def test_terms_say_how_long_each_primary_served() -> None:
    steps = history(plan("1"), plan("1", canary="2"), plan("2"), plan(None), plan("1"))
    now = START + timedelta(hours=10)
    assert [(term.version, term.length(now)) for term in terms(steps)] == [
        ("1", timedelta(hours=2)),
        ("2", timedelta(hours=1)),
        ("1", timedelta(hours=6)),
    ]


plans = st.builds(
    plan,
    st.sampled_from([*VERSIONS, None]),
    canary=st.sampled_from([*VERSIONS, None]),
    shadow=st.sampled_from([*VERSIONS, None]),
    share=st.sampled_from([0.1, 0.5]),
)
histories = st.lists(
    st.one_of(plans, st.tuples(plans, st.sampled_from(VERSIONS))), max_size=12
).map(lambda steps: history(*steps))


@given(histories, st.integers(-1, 13 * 60))
def test_which_version_served_when_can_always_be_answered(
    steps: list[Deployment], minutes: int
) -> None:
    instant = START + timedelta(minutes=minutes)
    serving = {
        term.version
        for term in terms(steps)
        if term.since <= instant and (term.until is None or instant < term.until)
    }
    version = served_at(steps, instant)
    assert serving == ({version} if version else set())


@given(histories)
def test_replaying_the_changes_ends_in_what_serves(steps: list[Deployment]) -> None:
    found = changes(steps)
    serving: dict[Role, str | None] = dict.fromkeys(Role)
    for change in found:
        assert serving[change.role] == change.before or change.role is not Role.PRIMARY
        serving[change.role] = change.after
    if steps:
        last = steps[-1].plan.primary
        assert serving[Role.PRIMARY] == (last.version if last else None)
    assert {change.at for change in found} == {deployment.at for deployment in steps}
