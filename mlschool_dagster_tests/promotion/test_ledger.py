"""The promotion ledger: append-only, in order, whoever writes at the same time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlschool_dagster.promotion.ledger import InvalidTransitionError, PromotionLedger, open_ledger
from mlschool_dagster.promotion.rollout import Step, rollouts
from mlschool_dagster_tests.promotion.samples import entry

ENDS = {
    Step.REJECTED,
    Step.HEALTHY,
    Step.UNPROVEN,
    Step.ROLLED_BACK,
    Step.FAILED,
    Step.SUPERSEDED,
}


@pytest.fixture
def ledger(uri: str) -> Iterator[PromotionLedger]:
    ledger = open_ledger(uri)
    yield ledger
    ledger.close()


def test_what_was_appended_is_read_in_order(ledger: PromotionLedger, uri: str) -> None:
    written = [entry(Step.REQUESTED), entry(Step.COMPARED, better=True, figures={"p": 0.01})]
    for step in written:
        ledger.append(step)
    reopened = open_ledger(uri)
    found = reopened.entries()
    reopened.close()
    assert [e.number for e in found] == [1, 2]
    assert [(e.step, e.at, e.details) for e in found] == [
        (e.step, e.at, e.details) for e in written
    ]
    assert ledger.entries("a") == found
    assert ledger.entries("other") == []


def test_a_repeated_step_changes_nothing(ledger: PromotionLedger) -> None:
    ledger.append(entry(Step.REQUESTED))
    ledger.append(entry(Step.COMPARED, by="run"))
    ledger.append(entry(Step.COMPARED, by="run"), after=1)
    assert len(ledger.entries()) == 2
    with pytest.raises(InvalidTransitionError, match="cannot follow 'compared'"):
        ledger.append(entry(Step.COMPARED, by="another run"))


def test_who_has_not_seen_the_newest_entry_decides_again(ledger: PromotionLedger) -> None:
    ledger.append(entry(Step.REQUESTED), after=0)
    ledger.append(entry(Step.FAILED), after=1)
    with pytest.raises(InvalidTransitionError, match="now has 2 entries"):
        ledger.append(entry(Step.REQUESTED, "b"), after=1)


def test_only_one_rollout_is_open(ledger: PromotionLedger) -> None:
    ledger.append(entry(Step.REQUESTED))
    with pytest.raises(InvalidTransitionError, match="while rollout a is open"):
        ledger.append(entry(Step.REQUESTED, "b"))
    ledger.append(entry(Step.FAILED))
    ledger.append(entry(Step.REQUESTED, "b"))


def test_a_step_of_an_unknown_rollout_is_refused(ledger: PromotionLedger) -> None:
    with pytest.raises(InvalidTransitionError, match="has no rollout 'a'"):
        ledger.append(entry(Step.COMPARED))


def test_of_many_writers_at_once_one_is_heard(ledger: PromotionLedger, uri: str) -> None:
    def write(number: int) -> bool:
        own = open_ledger(uri)
        try:
            own.append(entry(Step.REQUESTED, f"rollout {number}", by=str(number)), after=0)
        except InvalidTransitionError:
            return False
        finally:
            own.close()
        return True

    with ThreadPoolExecutor(8) as threads:
        heard = list(threads.map(write, range(8)))
    assert sum(heard) == 1
    assert len(ledger.entries()) == 1


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(Step), st.sampled_from("abc")), max_size=25),
    number=st.integers(0, 10**9),
)
def test_whatever_is_tried_the_ledger_holds_possible_rollouts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Step, str]], number: int
) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/{number}.db")
    for step, rollout in steps:
        try:
            ledger.append(entry(step, rollout))
        except InvalidTransitionError:
            continue
    entries = ledger.entries()
    ledger.close()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    for length in range(len(entries)):
        assert sum(rollout.is_open for rollout in rollouts(entries[: length + 1])) <= 1
    for each in rollouts(entries):
        recorded = [e.step for e in each.entries]
        assert recorded[0] is Step.REQUESTED
        assert not ENDS & set(recorded[:-1])
        assert Step.PROMOTED not in recorded or recorded.index(Step.CANARY_PASSED) < recorded.index(
            Step.PROMOTED
        )
        actions = [step for step in recorded if step not in (Step.APPROVAL_AWAITED, Step.APPROVED)]
        assert len(actions) == len(set(actions))
