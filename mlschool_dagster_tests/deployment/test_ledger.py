"""The deployment ledger: which version served when can always be answered."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Role
from mlschool_dagster.deployment.ledger import (
    Action,
    DeploymentEntry,
    DeploymentEvent,
    DeploymentLedger,
    changes,
    open_ledger,
    previous_primary,
    serving_plan,
    terms,
)
from mlschool_dagster.deployment.plan import Plan

START = datetime(2026, 11, 20, 23, tzinfo=UTC)
VERSIONS = ["1", "2", "3"]
Step = Plan | None | tuple[DeploymentEvent, Plan | None]
Actions = list[tuple[str, str, str | None, str | None]]


def plan(
    primary: str, canary: str | None = None, shadow: str | None = None, share: float = 0.1
) -> Plan:
    canary, shadow = (None if version == primary else version for version in (canary, shadow))
    return Plan(
        primary=primary,
        canary=canary,
        canary_share=share if canary else 0.0,
        shadow=shadow,
        shadow_share=1.0 if shadow else 0.0,
    )


def history(*steps: Step) -> list[DeploymentEntry]:
    """One entry an hour: a plan serves, or what the step says."""
    entries = []
    for hour, step in enumerate(steps):
        if isinstance(step, tuple):
            event, served = step
        else:
            event, served = (
                (DeploymentEvent.REMOVED if step is None else DeploymentEvent.SERVING),
                step,
            )
        at = START + timedelta(hours=hour)
        entries.append(DeploymentEntry(event, served, f"run-{hour}", "because", at, hour + 1))
    return entries


def actions_of(*steps: Step) -> Actions:
    return [
        (change.action.value, change.role.value, change.before, change.after)
        for change in changes(history(*steps))
    ]


CASES: dict[str, tuple[list[Step], Actions]] = {
    "a first version is requested and deployed": (
        [(DeploymentEvent.WANTED, plan("1")), plan("1")],
        [("deployed", "primary", None, "1")],
    ),
    "a version that fails is taken back": (
        [plan("1"), (DeploymentEvent.WANTED, plan("2")), (DeploymentEvent.TAKEN_BACK, plan("1"))],
        [("deployed", "primary", None, "1"), ("taken back", "primary", "1", "1")],
    ),
    "a first version that fails leaves none": (
        [(DeploymentEvent.WANTED, plan("1")), (DeploymentEvent.FAILED, None)],
        [("failed", "primary", None, None)],
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
    "an endpoint is removed": (
        [plan("1"), None],
        [("deployed", "primary", None, "1"), ("withdrawn", "primary", "1", None)],
    ),
    "somebody else changes it": (
        [plan("1"), (DeploymentEvent.OBSERVED, plan("2"))],
        [("deployed", "primary", None, "1"), ("deployed", "primary", "1", "2")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_change_has_its_name(case: str) -> None:
    steps, expected = CASES[case]
    assert actions_of(*steps) == expected


def test_a_change_says_who_wanted_it_when_and_why() -> None:
    _, second = changes(history(plan("1"), plan("2")))
    assert (second.by, second.reason) == ("run-1", "because")
    assert second.at == START + timedelta(hours=1)


def test_a_share_that_changes_is_a_change() -> None:
    steps = history(plan("1", canary="2"), plan("1", canary="2", share=0.5))
    last = changes(steps)[-1]
    assert (last.action, last.role, last.after, last.share) == (
        *(Action.CANARY, Role.CANARY),
        *("2", 0.5),
    )
    sampled = [
        *steps,
        DeploymentEntry(DeploymentEvent.SERVING, Plan(primary="1", sampling_share=0.2), at=START),
    ]
    assert changes(sampled)[-1].share == 0.2


def test_terms_say_how_long_each_primary_served() -> None:
    steps = history(plan("1"), plan("1", canary="2"), plan("2"), None, plan("1"))
    now = START + timedelta(hours=10)
    assert [(term.version, term.length(now)) for term in terms(steps)] == [
        ("1", timedelta(hours=2)),
        ("2", timedelta(hours=1)),
        ("1", timedelta(hours=6)),
    ]


@pytest.mark.parametrize(
    ("served", "previous"),
    [
        ([], None),
        (["1"], None),
        (["1", "1"], None),
        (["1", "2"], "1"),
        (["1", "2", "2"], "1"),
        (["1", "2", "1"], "2"),
        (["1", None, "2", None], "1"),
        ([None], None),
    ],
)
def test_the_previous_primary_is_the_last_other_one(
    served: list[str | None], previous: str | None
) -> None:
    steps = [None if version is None else plan(version) for version in served]
    assert previous_primary(history(*steps)) == previous


plans = st.builds(
    plan,
    st.sampled_from(VERSIONS),
    canary=st.sampled_from([*VERSIONS, None]),
    shadow=st.sampled_from([*VERSIONS, None]),
    share=st.sampled_from([0.1, 0.5]),
)
events = st.sampled_from(
    [DeploymentEvent.WANTED, DeploymentEvent.TAKEN_BACK, DeploymentEvent.OBSERVED]
)
histories = st.lists(
    st.one_of(plans, st.none(), st.tuples(events, plans), st.just((DeploymentEvent.FAILED, None))),
    max_size=12,
).map(lambda steps: history(*steps))


@given(histories, st.integers(-1, 13 * 60))
def test_which_version_served_when_can_always_be_answered(
    entries: list[DeploymentEntry], minutes: int
) -> None:
    instant = START + timedelta(minutes=minutes)
    serving = {
        term.version
        for term in terms(entries)
        if term.since <= instant and (term.until is None or instant < term.until)
    }
    until_then = serving_plan([entry for entry in entries if entry.at <= instant])
    assert serving == (set() if until_then is None else {until_then.primary})


@given(histories)
def test_replaying_the_changes_ends_in_what_serves(entries: list[DeploymentEntry]) -> None:
    result = changes(entries)
    primary: str | None = None
    for change in result:
        if change.role is Role.PRIMARY:
            assert change.before == primary
            primary = change.after
    last = serving_plan(entries)
    assert primary == (None if last is None else last.primary)
    assert {change.at for change in result} == {
        entry.at for entry in entries if entry.event is not DeploymentEvent.WANTED
    }


@pytest.fixture
def ledger(uri: str) -> Iterator[DeploymentLedger]:
    with closing(open_ledger(uri, "penguins")) as ledger:
        yield ledger


@given(entries=histories)
def test_what_was_appended_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[DeploymentEntry]
) -> None:
    uri = f"sqlite:///{tmp_path_factory.mktemp('history')}/history.db"
    with closing(open_ledger(uri, "penguins")) as kept:
        assert [kept.append(entry) for entry in entries] == entries
    with closing(open_ledger(uri, "penguins")) as again:
        assert again.entries() == entries


def test_each_endpoint_has_its_own_entries(ledger: DeploymentLedger, uri: str) -> None:
    ledger.append(DeploymentEntry(DeploymentEvent.SERVING, plan("1")))
    with closing(open_ledger(uri, "birds")) as other:
        assert other.entries() == []
        other.append(DeploymentEntry(DeploymentEvent.SERVING, plan("2")))
    assert [entry.plan for entry in ledger.entries()] == [plan("1")]


def test_entries_of_writers_at_once_are_all_kept_in_one_order(
    ledger: DeploymentLedger, uri: str
) -> None:
    def write(writer: int) -> list[int]:
        with closing(open_ledger(uri, "penguins")) as own:
            entry = DeploymentEntry(DeploymentEvent.WANTED, plan("1"), by=str(writer))
            return [own.append(entry).number for _ in range(10)]

    with ThreadPoolExecutor(4) as threads:
        numbers = [number for kept in threads.map(write, range(4)) for number in kept]
    assert sorted(numbers) == list(range(1, 41))
    entries = ledger.entries()
    assert [entry.number for entry in entries] == list(range(1, 41))
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)


def test_entries_stay_in_order_when_a_clock_goes_back(ledger: DeploymentLedger) -> None:
    ledger.append(DeploymentEntry(DeploymentEvent.WANTED, plan("1"), at=START))
    ledger.append(
        DeploymentEntry(DeploymentEvent.SERVING, plan("1"), at=START - timedelta(hours=1))
    )
    assert [entry.at for entry in ledger.entries()] == [START, START]
