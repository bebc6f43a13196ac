"""Every event ends up in its window's report, whatever dies, and by one run at a time.

The world below stands in for a store, a scheduler that drops run keys it has seen, and runs that
report what they read when they started. The state machine lets each of them fail at every point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlschool_dagster.capture.store import Changes
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.reconciler import (
    ReconcilerConfig,
    Run,
    RunRequest,
    RunStatus,
    Tick,
    reconcile,
)

WINDOWS = [Window(datetime(2026, 11, 20, hour, tzinfo=UTC)) for hour in range(6)]
CONFIG = ReconcilerConfig(
    max_attempts=3,
    backoff=timedelta(minutes=1),
    maximum_backoff=timedelta(minutes=8),
    stale_after=timedelta(minutes=30),
    max_requests=2,
    max_pending=3,
)


@dataclass
class WorldRun:
    """A run, and what it read of its window when it started."""

    window: Window
    run: Run
    read: str = ""
    dead: bool = False


@dataclass
class World:
    """A store, reports, and a scheduler."""

    now: datetime = datetime(2026, 11, 21, tzinfo=UTC)
    events: list[Window] = field(default_factory=list)
    reports: dict[Window, str] = field(default_factory=dict)
    world_runs: list[WorldRun] = field(default_factory=list)
    seen_keys: set[str] = field(default_factory=set)

    def changes(self, cursor: str | None) -> Changes:
        return Changes(frozenset(self.events[int(cursor or 0) :]), str(len(self.events)))

    def token(self, window: Window) -> str:
        return str(self.events.count(window))

    def coverage(self, window: Window) -> str | None:
        return self.reports.get(window)

    def runs(self, window: Window) -> Sequence[Run]:
        return [r.run for r in reversed(self.world_runs) if r.window == window]

    def submit(self, request: RunRequest) -> None:
        if request.key not in self.seen_keys:
            self.seen_keys.add(request.key)
            run = Run(request.key, RunStatus.QUEUED, self.now)
            self.world_runs.append(WorldRun(request.window, run))

    def by_status(self, status: RunStatus) -> list[WorldRun]:
        return [r for r in self.world_runs if r.run.status is status and not r.dead]

    def turn(self, world_run: WorldRun, status: RunStatus) -> None:
        world_run.run = replace(world_run.run, status=status, since=self.now)

    def start(self, world_run: WorldRun) -> None:
        world_run.read = self.token(world_run.window)
        self.turn(world_run, RunStatus.STARTED)

    def succeed(self, world_run: WorldRun) -> None:
        if self.now - world_run.run.since > CONFIG.stale_after:
            # Dagster ends a run that takes longer than its job may.
            self.turn(world_run, RunStatus.FAILED)
            return
        self.reports[world_run.window] = world_run.read
        self.turn(world_run, RunStatus.SUCCEEDED)

    def under_way(self, window: Window) -> list[Run]:
        return [
            run
            for run in self.runs(window)
            if run.status is RunStatus.QUEUED
            or (run.status is RunStatus.STARTED and self.now - run.since <= CONFIG.stale_after)
        ]

    def finish_everything(self) -> None:
        for world_run in self.by_status(RunStatus.QUEUED):
            self.start(world_run)
        for world_run in self.by_status(RunStatus.STARTED):
            self.succeed(world_run)


def tick(world: World, state: str | None, config: ReconcilerConfig = CONFIG) -> Tick:
    return reconcile(state, world, world.now, config)


class Loop(RuleBasedStateMachine):
    """Events land, ticks are evaluated, runs come and go, and anything may die in between."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.state: str | None = None

    @rule(window=st.sampled_from(WINDOWS), count=st.integers(1, 3))
    def events_land(self, window: Window, count: int) -> None:
        self.world.events += [window] * count

    @rule(minutes=st.sampled_from([0, 1, 5, 31]))
    def time_passes(self, minutes: int) -> None:
        self.world.now += timedelta(minutes=minutes)

    @rule(submitted=st.integers(0, 3), saved=st.booleans())
    def sensor_ticks(self, submitted: int, saved: bool) -> None:
        """The daemon lives, or dies after submitting some requests, or all but before saving."""
        result = tick(self.world, self.state)
        assert len(result.requests) <= CONFIG.max_requests
        lives = saved and submitted >= len(result.requests)
        for request in result.requests[:submitted]:
            self.world.submit(request)
        if lives:
            self.state = result.state

    @rule(data=st.data())
    def run_starts(self, data: st.DataObject) -> None:
        if queued := self.world.by_status(RunStatus.QUEUED):
            self.world.start(data.draw(st.sampled_from(queued)))

    @rule(
        data=st.data(), fate=st.sampled_from(["succeeds", "fails", "dies", "reports, then fails"])
    )
    def run_ends(self, data: st.DataObject, fate: str) -> None:
        started = self.world.by_status(RunStatus.STARTED)
        if not started:
            return
        world_run = data.draw(st.sampled_from(started))
        if fate in ("succeeds", "reports, then fails"):
            self.world.succeed(world_run)
        if fate in ("fails", "reports, then fails"):
            self.world.turn(world_run, RunStatus.FAILED)
        world_run.dead = fate == "dies"

    @invariant()
    def one_run_a_window(self) -> None:
        for window in WINDOWS:
            assert len(self.world.under_way(window)) <= 1

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.state or "") < 400

    def teardown(self) -> None:
        """Left in peace, every window is reported as it is, but where every attempt failed."""
        for _ in range(40):
            self.world.now += timedelta(minutes=31)
            result = tick(self.world, self.state)
            self.state = result.state
            for request in result.requests:
                self.world.submit(request)
            self.world.finish_everything()
        for window in set(self.world.events):
            token = self.world.token(window)
            attempts = [r for r in self.world.runs(window) if r.key and f"@{token}#" in r.key]
            if len(attempts) < CONFIG.max_attempts:
                assert self.world.coverage(window) == token
        assert not tick(self.world, self.state).requests


Loop.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestLoop = Loop.TestCase


def run_through(world: World, state: str | None) -> str:
    """One tick whose requests are submitted and saved."""
    result = tick(world, state)
    for request in result.requests:
        world.submit(request)
    return result.state


def test_nothing_landed_requests_nothing() -> None:
    assert tick(World(), None).requests == ()


def test_one_run_a_window_touched() -> None:
    world = World(events=[WINDOWS[0], WINDOWS[0], WINDOWS[1]])
    assert [r.key for r in tick(world, None).requests] == [
        "2026-11-20-00:00@2#1",
        "2026-11-20-01:00@1#1",
    ]


def test_a_reported_window_is_left_alone_until_something_lands() -> None:
    world = World(events=[WINDOWS[0]])
    state = run_through(world, None)
    world.finish_everything()
    state = run_through(world, state)
    assert not tick(world, state).requests
    world.events.append(WINDOWS[0])
    assert [r.key for r in tick(world, state).requests] == ["2026-11-20-00:00@2#1"]


def test_events_that_land_during_a_run_are_reported_after_it_at_once() -> None:
    world = World(events=[WINDOWS[0]])
    state = run_through(world, None)
    world.start(world.world_runs[0])
    world.events.append(WINDOWS[0])
    state = run_through(world, state)
    assert len(world.world_runs) == 1
    world.succeed(world.world_runs[0])
    assert [r.key for r in tick(world, state).requests] == ["2026-11-20-00:00@2#1"]


def test_a_failed_run_is_asked_for_again_later_and_finally_given_up() -> None:
    world = World(events=[WINDOWS[0]])
    state: str | None = None
    waits = []
    for _ in range(CONFIG.max_attempts):
        since = world.now
        while not (result := tick(world, state)).requests:
            world.now += timedelta(seconds=30)
        waits.append(world.now - since)
        state = result.state
        world.submit(result.requests[0])
        world.turn(world.world_runs[-1], RunStatus.FAILED)
    assert waits == [timedelta(0), timedelta(minutes=1), timedelta(minutes=2)]
    world.now += timedelta(days=1)
    result = tick(world, state)
    assert not result.requests
    assert "gave up after 3 attempts" in result.messages[0]
    assert tick(world, result.state).messages == ()
    world.events.append(WINDOWS[0])
    assert [r.key for r in tick(world, result.state).requests] == ["2026-11-20-00:00@2#1"]


def test_a_run_that_died_with_its_machine_is_asked_for_again() -> None:
    world = World(events=[WINDOWS[0]])
    state = run_through(world, None)
    world.start(world.world_runs[0])
    world.now += CONFIG.stale_after
    assert not tick(world, state).requests
    world.now += timedelta(seconds=1)
    result = tick(world, state)
    assert [r.attempt for r in result.requests] == [2]
    assert "taken for dead" in result.messages[0]


def test_a_run_that_succeeds_without_reporting_is_not_asked_for_for_ever() -> None:
    world = World(events=[WINDOWS[0]])
    state: str | None = None
    for _ in range(50):
        state = run_through(world, state)
        for world_run in world.by_status(RunStatus.QUEUED):
            world.turn(world_run, RunStatus.SUCCEEDED)
        world.now += timedelta(hours=1)
    assert len(world.world_runs) == CONFIG.max_attempts


def test_a_window_reported_by_hand_needs_no_run() -> None:
    world = World(events=[WINDOWS[0]], reports={WINDOWS[0]: "1"})
    assert not tick(world, None).requests


def test_a_long_history_is_taken_in_bit_by_bit_while_new_events_land() -> None:
    world = World(events=list(WINDOWS))
    state: str | None = None
    for step in range(30):
        if step < 10:
            world.events.append(WINDOWS[step % len(WINDOWS)])
        state = run_through(world, state)
        assert len(state) < 400
        world.finish_everything()
    assert world.reports == {window: world.token(window) for window in WINDOWS}


def test_a_window_that_has_not_begun_waits_until_it_has_and_the_others_go_on() -> None:
    """However many there are: they take no place of those that are pending."""
    present = Window.of(World().now)
    future = [Window(present.start + timedelta(hours=hours)) for hours in range(1, 6)]
    world = World(events=[*future, WINDOWS[0]])
    state: str | None = None
    for step in range(12):
        result = tick(world, state)
        assert {request.window for request in result.requests} <= {
            window for window in world.events if window.start <= world.now
        }
        if not step:
            assert [request.window for request in result.requests] == [WINDOWS[0]]
            assert result.later == tuple(window.key for window in future)
        for request in result.requests:
            world.submit(request)
        world.finish_everything()
        state = result.state
        world.now += timedelta(minutes=40)
    assert set(world.reports) == {*future, WINDOWS[0]}


@pytest.mark.parametrize("year", [1, 999, 1970])
def test_a_window_of_a_clock_that_was_never_set_is_named_once_and_left(year: int) -> None:
    odd = Window(datetime(year, 1, 1, tzinfo=UTC))
    assert Window.from_key(odd.key) == odd
    world = World(events=[odd, WINDOWS[0]])
    result = tick(world, None)
    assert [request.window for request in result.requests] == [WINDOWS[0]]
    (message,) = result.messages
    assert message.startswith(f"{odd.key}: no window is that old")
    assert tick(world, result.state).messages == ()


def test_a_window_that_goes_on_rests_between_its_reports_and_not_once_it_is_over() -> None:
    """Steady traffic for two hours: a report at once, then every few minutes, one at each end."""
    world = World(now=datetime(2026, 11, 21, 10, tzinfo=UTC))
    requested: dict[str, list[datetime]] = {}
    state: str | None = None
    for second in range(0, 7200, 10):
        world.now = datetime(2026, 11, 21, 10, tzinfo=UTC) + timedelta(seconds=second)
        if second < 7100:
            world.events.append(Window.of(world.now))
        result = tick(world, state)
        for request in result.requests:
            requested.setdefault(request.window.key, []).append(world.now)
            world.submit(request)
        world.finish_everything()
        state = result.state
    first, second_window = requested.values()
    for times in (first[:-1], second_window):
        pauses = [after - before for before, after in pairwise(times)]
        assert min(pauses) >= CONFIG.rest
        assert max(pauses) <= CONFIG.rest + timedelta(seconds=10)
    assert first[0] == datetime(2026, 11, 21, 10, tzinfo=UTC)
    assert first[-1] == datetime(2026, 11, 21, 11, tzinfo=UTC)


def test_runs_of_somebody_else_give_a_window_no_rest() -> None:
    """A labelling that follows at once is reported on at once, whatever else was done there."""
    world = World(now=WINDOWS[0].start + timedelta(minutes=5), events=[WINDOWS[0]])
    world.world_runs.append(WorldRun(WINDOWS[0], Run(None, RunStatus.SUCCEEDED, world.now)))
    assert len(tick(world, None).requests) == 1


def test_an_attempt_that_failed_is_repeated_however_long_a_window_goes_on() -> None:
    world = World(now=WINDOWS[0].start, events=[WINDOWS[0]])
    state = run_through(world, None)
    world.turn(world.world_runs[0], RunStatus.FAILED)
    world.now += CONFIG.backoff
    assert [request.attempt for request in tick(world, state).requests] == [2]


@pytest.mark.parametrize("state", ["17", "{}", "not json", '{"version": 99}', "[]"])
def test_a_foreign_cursor_is_named(state: str) -> None:
    with pytest.raises(UserError, match="reset the cursor"):
        tick(World(), state)
