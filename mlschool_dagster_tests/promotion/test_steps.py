"""The state machine: which move comes next, and what holds whatever happens in between."""

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
from mlschool_dagster.promotion.episode import Entry, Episode, Gate, Step, episodes
from mlschool_dagster.promotion.evidence import Health, PairedEvidence
from mlschool_dagster.promotion.ledger import OutOfOrderError, PromotionLedger, open_ledger
from mlschool_dagster.promotion.steps import (
    MAXIMUM_ATTEMPTS,
    Act,
    Do,
    Move,
    Served,
    Tell,
    Wait,
    advance,
    proceed,
)
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
class FakeWorld:
    """A world that is what a test says."""

    plan: Served | None = field(default_factory=lambda: Served(CHAMPION, "", by_us=False))
    runs: dict[Act, list[RunStatus]] = field(default_factory=dict)
    paired: PairedEvidence = field(default_factory=PairedEvidence)
    traffic: Health = field(default_factory=Health)
    measured: list[Metric] = field(default_factory=list)

    def attempts(self, act: Act) -> Sequence[RunStatus]:
        return self.runs.get(act, [])

    def served(self) -> Served | None:
        return self.plan

    def evidence(self) -> PairedEvidence:
        return self.paired

    def health(self) -> Health:
        return self.traffic

    def metrics(self) -> Sequence[Metric]:
        return self.measured


def story(*steps: Step) -> Episode:
    """An episode of those steps, an hour each, in which the challenger is better."""
    return Episode(
        tuple(
            entry(step, hours=hours, better=step is Step.COMPARED)
            for hours, step in enumerate(steps)
        )
    )


def move(
    *steps: Step,
    world: FakeWorld | None = None,
    hours: float = 0.0,
    config: PromotionConfig = CONFIG,
) -> Move:
    """The move after `steps`, `hours` after the last of them."""
    told = story(*steps)
    return advance(told, world or FakeWorld(), told.last.at + timedelta(hours=hours), config)


COMPARED = (Step.REQUESTED, Step.COMPARED)
CANARY = (*COMPARED, Step.CANARY)
PASSED = (*CANARY, Step.CANARY_PASSED)
PROMOTED = (*PASSED, Step.PROMOTED)
AS_CANARY = Served(CHAMPION, CHALLENGER, by_us=True)
AS_PRIMARY = Served(CHALLENGER, "", by_us=True)


def step(found: Move) -> Step:
    assert isinstance(found, Tell)
    return found.step


@pytest.mark.parametrize(
    ("steps", "act"),
    [
        ((Step.REQUESTED,), Act.TRAINING),
        (COMPARED, Act.CANARY),
        (PASSED, Act.PROMOTION),
        ((*CANARY, Step.CANARY_FAILED), Act.WITHDRAWAL),
        ((*PROMOTED, Step.PROBATION_FAILED), Act.ROLLBACK),
    ],
)
def test_a_step_asks_for_its_act_until_that_was_done(steps: tuple[Step, ...], act: Act) -> None:
    served = {Act.CANARY: Served(CHAMPION, "", True), Act.ROLLBACK: AS_PRIMARY}
    world = FakeWorld(served.get(act, AS_CANARY))
    assert move(*steps, world=world) == Do(act, 1)
    for under_way in (RunStatus.QUEUED, RunStatus.STARTED):
        world.runs[act] = [under_way]
        assert isinstance(move(*steps, world=world), Wait)
    world.runs[act] = [RunStatus.FAILED]
    assert move(*steps, world=world) == Do(act, 2)
    world.runs[act] = [RunStatus.SUCCEEDED, RunStatus.FAILED]
    assert isinstance(move(*steps, world=world), Tell)
    world.runs[act] = [RunStatus.FAILED] * MAXIMUM_ATTEMPTS
    assert step(move(*steps, world=world)) in (Step.FAILED, Step.CANARY_FAILED)


def test_a_training_that_ended_without_a_comparison_has_failed() -> None:
    world = FakeWorld(runs={Act.TRAINING: [RunStatus.SUCCEEDED]})
    assert step(move(Step.REQUESTED, world=world)) is Step.FAILED


def test_a_challenger_that_is_not_better_is_rejected() -> None:
    told = Episode((entry(Step.REQUESTED), entry(Step.COMPARED, better=False)))
    assert step(advance(told, FakeWorld(), BEGINNING, CONFIG)) is Step.REJECTED


def test_a_canary_is_judged_by_its_evidence() -> None:
    assert isinstance(move(*CANARY, world=FakeWorld(AS_CANARY)), Wait)
    passed = move(*CANARY, world=FakeWorld(AS_CANARY, paired=GOOD))
    assert step(passed) is Step.CANARY_PASSED
    assert isinstance(passed, Tell)
    assert passed.details["realised_difference"] == pytest.approx(80 / 900)
    assert step(move(*CANARY, world=FakeWorld(AS_CANARY, paired=BAD))) is Step.CANARY_FAILED


def test_a_canary_without_traffic_fails_in_the_end_and_says_so() -> None:
    late = move(*CANARY, world=FakeWorld(AS_CANARY), hours=25)
    assert step(late) is Step.CANARY_FAILED
    assert isinstance(late, Tell)
    assert "0 of 100 rows answered by the canary" in late.reason


def test_a_primary_without_traffic_remains_unproven() -> None:
    world = FakeWorld(AS_PRIMARY)
    assert isinstance(move(*PROMOTED, world=world), Wait)
    assert step(move(*PROMOTED, world=world, hours=73)) is Step.UNPROVEN


@pytest.mark.parametrize("gate", Gate)
def test_a_gate_waits_for_a_human(gate: Gate) -> None:
    before = {
        Gate.RETRAINING: (Step.REQUESTED,),
        Gate.CANARY: COMPARED,
        Gate.PROMOTION: PASSED,
    }[gate]
    world = FakeWorld(AS_CANARY if gate is Gate.PROMOTION else Served(CHAMPION, "", False))
    config = PromotionConfig(approvals=frozenset({gate}))
    asked = move(*before, world=world, config=config)
    assert step(asked) is Step.APPROVAL_AWAITED
    waiting = (*before, Step.APPROVAL_AWAITED)
    assert isinstance(move(*waiting, world=world, config=config, hours=999), Wait)
    assert isinstance(move(*waiting, Step.APPROVED, world=world, config=config), Do)
    declined = story(*waiting, Step.DECLINED)
    assert declined.is_open == (gate is Gate.PROMOTION)


def test_a_declined_promotion_withdraws_the_canary() -> None:
    declined = move(*PASSED, Step.APPROVAL_AWAITED, Step.DECLINED, world=FakeWorld(AS_CANARY))
    assert step(declined) is Step.CANARY_FAILED


def test_a_canary_is_watched_while_its_promotion_waits_for_approval() -> None:
    waiting = (*PASSED, Step.APPROVAL_AWAITED)
    assert isinstance(move(*waiting, world=FakeWorld(AS_CANARY), hours=999), Wait)
    assert step(move(*waiting, world=FakeWorld(AS_CANARY, paired=BAD))) is Step.CANARY_FAILED


@pytest.mark.parametrize("steps", [COMPARED, CANARY, PASSED, PROMOTED])
def test_who_deploys_by_hand_ends_the_episode(steps: tuple[Step, ...]) -> None:
    world = FakeWorld(Served("7", "", by_us=False, reason="a hotfix"))
    found = move(*steps, world=world)
    assert step(found) is Step.SUPERSEDED
    assert isinstance(found, Tell)
    assert found.reason == "Somebody else let version 7 serve (a hotfix)."


def test_an_endpoint_that_was_stopped_ends_the_episode() -> None:
    world = FakeWorld()
    world.plan = None
    assert step(move(*CANARY, world=world)) is Step.SUPERSEDED


def accuracy(version: str, hours: int, value: float) -> Metric:
    window = Window.of(BEGINNING + timedelta(hours=hours))
    return Metric(window, MetricName.REALISED_ACCURACY, value, 200, version=version)


def test_a_primary_is_healthy_after_windows_that_are_as_good() -> None:
    before = [accuracy(CHAMPION, hours, 0.8) for hours in range(4)]
    after = [accuracy(CHALLENGER, hours, 0.85) for hours in range(4, 7)]
    world = FakeWorld(AS_PRIMARY, measured=[*before, *after])
    assert isinstance(move(*PROMOTED, world=world, hours=2), Wait)
    assert step(move(*PROMOTED, world=world, hours=3)) is Step.HEALTHY
    worse = [accuracy(CHALLENGER, hours, 0.6) for hours in range(4, 7)]
    world = FakeWorld(AS_PRIMARY, measured=[*before, *worse])
    assert step(move(*PROMOTED, world=world, hours=1)) is Step.PROBATION_FAILED


@contextmanager
def fresh_ledger() -> Iterator[PromotionLedger]:
    with TemporaryDirectory() as folder:
        ledger = open_ledger(f"sqlite:///{Path(folder)}/history.db")
        yield ledger
        ledger.close()


class Simulation(FakeWorld):
    """A world in which runs are carried out some time, daemons die, and people interfere."""

    def __init__(self, ledger: PromotionLedger, config: PromotionConfig) -> None:
        super().__init__()
        self.ledger = ledger
        self.config = config
        self.now = BEGINNING
        self.served_fully: list[str] = []

    def episode(self) -> Episode | None:
        entries = self.ledger.entries()
        return episodes(entries)[-1] if entries else None

    def step(self, event: str) -> None:
        self.now += timedelta(minutes=10)
        with suppress(OutOfOrderError):
            getattr(self, event)()

    def request(self) -> None:
        number = len(episodes(self.ledger.entries()))
        self.ledger.append(entry(Step.REQUESTED, f"episode {number}", champion=self.primary))
        self.runs, self.paired, self.traffic = {}, PairedEvidence(), Health()

    @property
    def primary(self) -> str:
        assert self.plan is not None
        return self.plan.primary

    def tick(self) -> None:
        found = proceed(self.ledger, lambda episode: self, self.now, self.config, "sensor")
        if isinstance(found, Do):
            runs = self.runs.setdefault(found.act, [])
            assert found.attempt == len(runs) + 1
            runs.insert(0, RunStatus.QUEUED)

    def lost_tick(self) -> None:
        """A daemon that dies after its decisions were told, before its runs were requested."""
        proceed(self.ledger, lambda episode: self, self.now, self.config, "sensor")

    def run_succeeds(self) -> None:
        for act, runs in self.runs.items():
            if runs and runs[0] is RunStatus.QUEUED:
                self._carry_out(act)
                runs[0] = RunStatus.SUCCEEDED

    def run_fails(self) -> None:
        for runs in self.runs.values():
            if runs and runs[0] is RunStatus.QUEUED:
                runs[0] = RunStatus.FAILED

    def _carry_out(self, act: Act) -> None:
        episode = self.episode()
        assert episode is not None
        champion, challenger = episode.champion, f"challenger of {episode.id}"
        if act is Act.TRAINING:
            compared = entry(Step.COMPARED, episode.id, better=len(self.served_fully) % 3 != 2)
            self.ledger.append(replace(compared, version=challenger))
            return
        self.plan = {
            Act.CANARY: Served(champion, challenger, by_us=True),
            Act.PROMOTION: Served(challenger, "", by_us=True),
            Act.WITHDRAWAL: Served(champion, "", by_us=True),
            Act.ROLLBACK: Served(champion, "", by_us=True),
        }[act]
        self.served_fully.append(self.primary)

    def evidence_is_good(self) -> None:
        self.paired = GOOD

    def evidence_is_bad(self) -> None:
        self.paired = BAD
        self.traffic = Health(1000, 500)

    def time_passes(self) -> None:
        self.now += timedelta(hours=80)

    def deploy_by_hand(self) -> None:
        self.plan = Served("by hand", "", by_us=False)

    def approve(self) -> None:
        self._answer(Step.APPROVED)

    def decline(self) -> None:
        self._answer(Step.DECLINED)

    def _answer(self, answer: Step) -> None:
        if episode := self.episode():
            self.ledger.append(entry(answer, episode.id))


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
        world = Simulation(ledger, PromotionConfig(approvals=approvals))
        for event in events:
            world.step(event)
            told = episodes(ledger.entries())
            assert sum(episode.is_open for episode in told) <= 1
        entries = ledger.entries()
        for episode in episodes(entries):
            assert_sound(episode, approvals)
        compared = {e.version for e in entries if e.step is Step.COMPARED and e.details["better"]}
        for primary in world.served_fully:
            assert primary in {CHAMPION, "by hand"} | compared
        for runs in world.runs.values():
            assert len(runs) <= MAXIMUM_ATTEMPTS


def assert_sound(episode: Episode, approvals: frozenset[Gate]) -> None:
    """Each step came at most once, and none without the one that it needs."""
    told = [e.step for e in episode.entries]
    acts = [s for s in told if s not in (Step.APPROVAL_AWAITED, Step.APPROVED, Step.DECLINED)]
    assert len(acts) == len(set(acts))
    for needed, late in ((Step.COMPARED, Step.CANARY), (Step.CANARY_PASSED, Step.PROMOTED)):
        assert late not in told or needed in told[: told.index(late)]
    approved = told.count(Step.APPROVED)
    passed = {
        Gate.RETRAINING: Step.COMPARED in told,
        Gate.CANARY: Step.CANARY in told,
        Gate.PROMOTION: Step.PROMOTED in told,
    }
    assert approved >= sum(passed[gate] for gate in approvals)


def test_a_step_that_somebody_else_took_meanwhile_is_not_taken_twice() -> None:
    with fresh_ledger() as ledger:
        ledger.append(entry(Step.REQUESTED))
        world = FakeWorld(runs={Act.TRAINING: [RunStatus.SUCCEEDED]})

        def slow(episode: Episode) -> FakeWorld:
            # The run tells of its comparison just after the ledger was read.
            if len(ledger.entries()) == 1:
                ledger.append(entry(Step.COMPARED, better=True))
            return world

        with pytest.raises(OutOfOrderError, match="has gone on to 2"):
            proceed(ledger, slow, later(), CONFIG, "sensor")
        assert proceed(ledger, slow, later(), CONFIG, "sensor") == Do(Act.CANARY, 1)


def later() -> datetime:
    return BEGINNING + timedelta(hours=1)


def test_without_an_episode_there_is_nothing_to_do() -> None:
    with fresh_ledger() as ledger:
        found = proceed(ledger, lambda episode: FakeWorld(), BEGINNING, CONFIG, "sensor")
        assert found == Wait("No episode is open.")
        ledger.append(entry(Step.REQUESTED))
        ledger.append(Entry("a", later(), Step.FAILED, "", "sensor", "It broke."))
        found = proceed(ledger, lambda episode: FakeWorld(), BEGINNING, CONFIG, "sensor")
        assert found == Wait("No episode is open.")
