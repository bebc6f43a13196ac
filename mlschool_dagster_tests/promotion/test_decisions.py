"""The state machine: which decision comes next, and what holds whatever happens in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.reconciler import RunStatus
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.decisions import (
    MAXIMUM_ATTEMPTS,
    Decision,
    RecordTransition,
    RolloutAction,
    RunAction,
    ServingState,
    Wait,
    next_decision,
    run_until_blocked,
)
from mlschool_dagster.promotion.evidence import EndpointHealth, PairedEvidence
from mlschool_dagster.promotion.ledger import InvalidTransitionError, PromotionLedger, open_ledger
from mlschool_dagster.promotion.rollout import Entry, Gate, Rollout, Step, rollouts
from mlschool_dagster_tests.promotion.samples import BEGINNING, CHALLENGER, CHAMPION, entry

CONFIG = PromotionConfig()
GOOD = PairedEvidence(
    canary_rows=500,
    pairs=900,
    agreeing=800,
    labelled=900,
    gained=90,
    lost=10,
    confidence={0.0: 900},
)
BAD = replace(GOOD, gained=10, lost=90)


@dataclass
class FakeContext:
    """A context that is what a test says."""

    plan: ServingState | None = field(
        default_factory=lambda: ServingState(CHAMPION, "", by_us=False)
    )
    runs: dict[RolloutAction, list[RunStatus]] = field(default_factory=dict)
    paired: PairedEvidence = field(default_factory=PairedEvidence)
    traffic: EndpointHealth = field(default_factory=EndpointHealth)
    measured: list[Metric] = field(default_factory=list)

    def attempts(self, action: RolloutAction) -> Sequence[RunStatus]:
        return self.runs.get(action, [])

    def serving_state(self) -> ServingState | None:
        return self.plan

    def evidence(self) -> PairedEvidence:
        return self.paired

    def health(self) -> EndpointHealth:
        return self.traffic

    def metrics(self) -> Sequence[Metric]:
        return self.measured


def story(*steps: Step) -> Rollout:
    """A rollout of those steps, an hour each, in which the challenger is better."""
    return Rollout(
        tuple(
            entry(step, hours=hours, better=step is Step.COMPARED)
            for hours, step in enumerate(steps)
        )
    )


def decide(
    *steps: Step,
    context: FakeContext | None = None,
    hours: float = 0.0,
    config: PromotionConfig = CONFIG,
) -> Decision:
    """The decision after `steps`, `hours` after the last of them."""
    known = story(*steps)
    return next_decision(
        known, context or FakeContext(), known.last.at + timedelta(hours=hours), config
    )


COMPARED = (Step.REQUESTED, Step.COMPARED)
CANARY = (*COMPARED, Step.CANARY)
PASSED = (*CANARY, Step.CANARY_PASSED)
PROMOTED = (*PASSED, Step.PROMOTED)
AS_CANARY = ServingState(CHAMPION, CHALLENGER, by_us=True)
AS_PRIMARY = ServingState(CHALLENGER, "", by_us=True)


def step(found: Decision) -> Step:
    assert isinstance(found, RecordTransition)
    return found.step


@pytest.mark.parametrize(
    ("steps", "action"),
    [
        ((Step.REQUESTED,), RolloutAction.TRAINING),
        (COMPARED, RolloutAction.CANARY),
        (PASSED, RolloutAction.PROMOTION),
        ((*CANARY, Step.CANARY_FAILED), RolloutAction.WITHDRAWAL),
        ((*PROMOTED, Step.SOAK_FAILED), RolloutAction.ROLLBACK),
    ],
)
def test_a_step_requires_its_action_until_that_has_succeeded(
    steps: tuple[Step, ...], action: RolloutAction
) -> None:
    served = {
        RolloutAction.CANARY: ServingState(CHAMPION, "", True),
        RolloutAction.ROLLBACK: AS_PRIMARY,
    }
    context = FakeContext(served.get(action, AS_CANARY))
    assert decide(*steps, context=context) == RunAction(action, 1)
    for under_way in (RunStatus.QUEUED, RunStatus.STARTED):
        context.runs[action] = [under_way]
        assert isinstance(decide(*steps, context=context), Wait)
    context.runs[action] = [RunStatus.FAILED]
    assert decide(*steps, context=context) == RunAction(action, 2)
    context.runs[action] = [RunStatus.SUCCEEDED, RunStatus.FAILED]
    assert isinstance(decide(*steps, context=context), RecordTransition)
    context.runs[action] = [RunStatus.FAILED] * MAXIMUM_ATTEMPTS
    assert step(decide(*steps, context=context)) in (Step.FAILED, Step.CANARY_FAILED)


def test_a_training_that_ended_without_a_comparison_has_failed() -> None:
    context = FakeContext(runs={RolloutAction.TRAINING: [RunStatus.SUCCEEDED]})
    assert step(decide(Step.REQUESTED, context=context)) is Step.FAILED


def test_a_challenger_that_is_not_better_is_rejected() -> None:
    known = Rollout((entry(Step.REQUESTED), entry(Step.COMPARED, better=False)))
    assert step(next_decision(known, FakeContext(), BEGINNING, CONFIG)) is Step.REJECTED


def test_a_canary_is_judged_by_its_evidence() -> None:
    assert isinstance(decide(*CANARY, context=FakeContext(AS_CANARY)), Wait)
    passed = decide(*CANARY, context=FakeContext(AS_CANARY, paired=GOOD))
    assert step(passed) is Step.CANARY_PASSED
    assert isinstance(passed, RecordTransition)
    assert passed.details["realised_difference"] == pytest.approx(80 / 900)
    assert step(decide(*CANARY, context=FakeContext(AS_CANARY, paired=BAD))) is Step.CANARY_FAILED


def test_a_canary_without_traffic_fails_in_the_end_and_says_so() -> None:
    late = decide(*CANARY, context=FakeContext(AS_CANARY), hours=25)
    assert step(late) is Step.CANARY_FAILED
    assert isinstance(late, RecordTransition)
    assert "0 of 100 rows answered by the canary" in late.reason


def test_a_primary_without_traffic_remains_unproven() -> None:
    context = FakeContext(AS_PRIMARY)
    assert isinstance(decide(*PROMOTED, context=context), Wait)
    assert step(decide(*PROMOTED, context=context, hours=73)) is Step.UNPROVEN


@pytest.mark.parametrize("gate", Gate)
def test_a_gate_waits_for_a_human(gate: Gate) -> None:
    before = {
        Gate.RETRAINING: (Step.REQUESTED,),
        Gate.CANARY: COMPARED,
        Gate.PROMOTION: PASSED,
    }[gate]
    context = FakeContext(
        AS_CANARY if gate is Gate.PROMOTION else ServingState(CHAMPION, "", False)
    )
    config = PromotionConfig(approvals=frozenset({gate}))
    asked = decide(*before, context=context, config=config)
    assert step(asked) is Step.APPROVAL_AWAITED
    waiting = (*before, Step.APPROVAL_AWAITED)
    assert isinstance(decide(*waiting, context=context, config=config, hours=999), Wait)
    assert isinstance(decide(*waiting, Step.APPROVED, context=context, config=config), RunAction)
    declined = story(*waiting, Step.DECLINED)
    assert declined.is_open == (gate is Gate.PROMOTION)


def test_a_declined_promotion_withdraws_the_canary() -> None:
    declined = decide(*PASSED, Step.APPROVAL_AWAITED, Step.DECLINED, context=FakeContext(AS_CANARY))
    assert step(declined) is Step.CANARY_FAILED


def test_a_canary_is_watched_while_its_promotion_waits_for_approval() -> None:
    waiting = (*PASSED, Step.APPROVAL_AWAITED)
    assert isinstance(decide(*waiting, context=FakeContext(AS_CANARY), hours=999), Wait)
    assert step(decide(*waiting, context=FakeContext(AS_CANARY, paired=BAD))) is Step.CANARY_FAILED


@pytest.mark.parametrize("steps", [COMPARED, CANARY, PASSED, PROMOTED])
def test_who_deploys_by_hand_ends_the_rollout(steps: tuple[Step, ...]) -> None:
    context = FakeContext(ServingState("7", "", by_us=False, reason="a hotfix"))
    found = decide(*steps, context=context)
    assert step(found) is Step.SUPERSEDED
    assert isinstance(found, RecordTransition)
    assert found.reason == "Somebody else deployed version 7 (a hotfix)."


def test_an_endpoint_that_was_stopped_ends_the_rollout() -> None:
    context = FakeContext()
    context.plan = None
    assert step(decide(*CANARY, context=context)) is Step.SUPERSEDED


def accuracy(version: str, hours: int, value: float) -> Metric:
    window = Window.of(BEGINNING + timedelta(hours=hours))
    return Metric(window, MetricName.REALISED_ACCURACY, value, 200, version=version)


def test_a_primary_is_healthy_after_windows_that_are_as_good() -> None:
    before = [accuracy(CHAMPION, hours, 0.8) for hours in range(4)]
    after = [accuracy(CHALLENGER, hours, 0.85) for hours in range(4, 7)]
    context = FakeContext(AS_PRIMARY, measured=[*before, *after])
    assert isinstance(decide(*PROMOTED, context=context, hours=2), Wait)
    assert step(decide(*PROMOTED, context=context, hours=3)) is Step.HEALTHY
    worse = [accuracy(CHALLENGER, hours, 0.6) for hours in range(4, 7)]
    context = FakeContext(AS_PRIMARY, measured=[*before, *worse])
    assert step(decide(*PROMOTED, context=context, hours=1)) is Step.SOAK_FAILED


@contextmanager
def fresh_ledger() -> Iterator[PromotionLedger]:
    with TemporaryDirectory() as folder:
        ledger = open_ledger(f"sqlite:///{Path(folder)}/history.db")
        yield ledger
        ledger.close()


class Simulation(FakeContext):
    """A context in which runs are carried out some time, daemons die, and people interfere."""

    def __init__(self, ledger: PromotionLedger, config: PromotionConfig) -> None:
        super().__init__()
        self.ledger = ledger
        self.config = config
        self.now = BEGINNING
        self.served_fully: list[str] = []

    def rollout(self) -> Rollout | None:
        entries = self.ledger.entries()
        return rollouts(entries)[-1] if entries else None

    def step(self, event: str) -> None:
        self.now += timedelta(minutes=10)
        with suppress(InvalidTransitionError):
            getattr(self, event)()

    def request(self) -> None:
        number = len(rollouts(self.ledger.entries()))
        self.ledger.append(entry(Step.REQUESTED, f"rollout {number}", champion=self.primary))
        self.runs, self.paired, self.traffic = {}, PairedEvidence(), EndpointHealth()

    @property
    def primary(self) -> str:
        assert self.plan is not None
        return self.plan.primary

    def tick(self) -> None:
        found = run_until_blocked(
            self.ledger, lambda rollout: self, self.now, self.config, "sensor"
        )
        if isinstance(found, RunAction):
            runs = self.runs.setdefault(found.action, [])
            assert found.attempt == len(runs) + 1
            runs.insert(0, RunStatus.QUEUED)

    def lost_tick(self) -> None:
        """A daemon that dies after its decisions were known, before its runs were requested."""
        run_until_blocked(self.ledger, lambda rollout: self, self.now, self.config, "sensor")

    def run_succeeds(self) -> None:
        for action, runs in self.runs.items():
            if runs and runs[0] is RunStatus.QUEUED:
                self._carry_out(action)
                runs[0] = RunStatus.SUCCEEDED

    def run_fails(self) -> None:
        for runs in self.runs.values():
            if runs and runs[0] is RunStatus.QUEUED:
                runs[0] = RunStatus.FAILED

    def _carry_out(self, action: RolloutAction) -> None:
        rollout = self.rollout()
        assert rollout is not None
        champion, challenger = rollout.champion, f"challenger of {rollout.id}"
        if action is RolloutAction.TRAINING:
            compared = entry(Step.COMPARED, rollout.id, better=len(self.served_fully) % 3 != 2)
            self.ledger.append(replace(compared, version=challenger))
            return
        self.plan = {
            RolloutAction.CANARY: ServingState(champion, challenger, by_us=True),
            RolloutAction.PROMOTION: ServingState(challenger, "", by_us=True),
            RolloutAction.WITHDRAWAL: ServingState(champion, "", by_us=True),
            RolloutAction.ROLLBACK: ServingState(champion, "", by_us=True),
        }[action]
        self.served_fully.append(self.primary)

    def evidence_is_good(self) -> None:
        self.paired = GOOD

    def evidence_is_bad(self) -> None:
        self.paired = BAD
        self.traffic = EndpointHealth(1000, 500)

    def time_passes(self) -> None:
        self.now += timedelta(hours=80)

    def deploy_by_hand(self) -> None:
        self.plan = ServingState("by hand", "", by_us=False)

    def approve(self) -> None:
        self._answer(Step.APPROVED)

    def decline(self) -> None:
        self._answer(Step.DECLINED)

    def _answer(self, answer: Step) -> None:
        if rollout := self.rollout():
            self.ledger.append(entry(answer, rollout.id))


EVENTS = [
    *("request", "tick", "tick", "tick", "lost_tick", "run_succeeds", "run_succeeds", "run_fails"),
    *("evidence_is_good", "evidence_is_bad", "time_passes", "deploy_by_hand"),
    *("approve", "decline"),
]


@settings(max_examples=30)
@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=50),
    approvals=st.frozensets(st.sampled_from(Gate)),
)
def test_whatever_happens_in_whatever_order(events: list[str], approvals: frozenset[Gate]) -> None:
    with fresh_ledger() as ledger:
        context = Simulation(ledger, PromotionConfig(approvals=approvals))
        for event in events:
            context.step(event)
            known = rollouts(ledger.entries())
            assert sum(rollout.is_open for rollout in known) <= 1
        entries = ledger.entries()
        for rollout in rollouts(entries):
            assert_sound(rollout, approvals)
        compared = {e.version for e in entries if e.step is Step.COMPARED and e.details["better"]}
        for primary in context.served_fully:
            assert primary in {CHAMPION, "by hand"} | compared
        for runs in context.runs.values():
            assert len(runs) <= MAXIMUM_ATTEMPTS


def assert_sound(rollout: Rollout, approvals: frozenset[Gate]) -> None:
    """Each step came at most once, and none without the one that it needs."""
    known = [e.step for e in rollout.entries]
    actions = [s for s in known if s not in (Step.APPROVAL_AWAITED, Step.APPROVED, Step.DECLINED)]
    assert len(actions) == len(set(actions))
    for needed, late in ((Step.COMPARED, Step.CANARY), (Step.CANARY_PASSED, Step.PROMOTED)):
        assert late not in known or needed in known[: known.index(late)]
    approved = known.count(Step.APPROVED)
    passed = {
        Gate.RETRAINING: Step.COMPARED in known,
        Gate.CANARY: Step.CANARY in known,
        Gate.PROMOTION: Step.PROMOTED in known,
    }
    assert approved >= sum(passed[gate] for gate in approvals)


def test_a_step_that_somebody_else_took_meanwhile_is_not_taken_twice() -> None:
    with fresh_ledger() as ledger:
        ledger.append(entry(Step.REQUESTED))
        context = FakeContext(runs={RolloutAction.TRAINING: [RunStatus.SUCCEEDED]})

        def slow(rollout: Rollout) -> FakeContext:
            # The run records its comparison just after the ledger was read.
            if len(ledger.entries()) == 1:
                ledger.append(entry(Step.COMPARED, better=True))
            return context

        with pytest.raises(InvalidTransitionError, match="now has 2 entries"):
            run_until_blocked(ledger, slow, later(), CONFIG, "sensor")
        assert run_until_blocked(ledger, slow, later(), CONFIG, "sensor") == RunAction(
            RolloutAction.CANARY, 1
        )


def later() -> datetime:
    return BEGINNING + timedelta(hours=1)


def test_without_a_rollout_there_is_nothing_to_do() -> None:
    with fresh_ledger() as ledger:
        found = run_until_blocked(
            ledger, lambda rollout: FakeContext(), BEGINNING, CONFIG, "sensor"
        )
        assert found == Wait("No rollout is open.")
        ledger.append(entry(Step.REQUESTED))
        ledger.append(Entry("a", later(), Step.FAILED, "", "sensor", "It broke."))
        found = run_until_blocked(
            ledger, lambda rollout: FakeContext(), BEGINNING, CONFIG, "sensor"
        )
        assert found == Wait("No rollout is open.")
