"""Wherever the daemon is killed in a rollout: the next one goes on, and does nothing twice."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from mlschool_dagster.defs.promotion.actions import ACTION_TAG, EVIDENCE_ACTION
from mlschool_dagster.deployment.ledger import DeploymentEvent, open_ledger
from mlschool_dagster.local.platform import local_endpoint
from mlschool_dagster.promotion.decisions import RolloutAction
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster.simulation.traffic import Drift, TrafficConfig
from mlschool_dagster_tests.defs.monitoring.test_crashes import (
    kill_processes,
    start_daemon,
    wait_until,
)
from mlschool_dagster_tests.defs.promotion.sensor_driver import last, steps
from mlschool_dagster_tests.defs.promotion.test_challenger_comparison import live_through
from mlschool_dagster_tests.defs.promotion.test_promotion_sensor import measured, serve_both
from mlschool_dagster_tests.defs.promotion.test_retraining_sensor import degrade
from mlschool_dagster_tests.platform import Platform
from mlschool_dagster_tests.serving.tiny_model import ROW

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CRASHING = "mlschool_dagster_tests.defs.promotion.crashing_daemon"


class Daemons:
    """Daemons that are killed one after another; what they started lives on."""

    def __init__(self, platform: Platform, clock: Path) -> None:
        self.platform = platform
        self.clock = clock

    def live(self, until: Callable[[], bool] = lambda: False) -> None:
        """One daemon, killed by what it does, or else as soon as `until` is true."""
        daemon = start_daemon(self.platform, CRASHING, {"MLSCHOOL_CLOCK": str(self.clock)})
        wait_until(lambda: daemon.poll() is not None or until())
        daemon.kill()
        daemon.wait()


@pytest.fixture
def daemons(trained_platform: Platform, tmp_path: Path) -> Iterator[Daemons]:
    clock = tmp_path / "clock"
    clock.write_text("0", encoding="ascii")
    try:
        yield Daemons(trained_platform, clock)
    finally:
        kill_processes(trained_platform)


def deployed(platform: Platform) -> list[tuple[str, str | None]]:
    """The primaries and canaries that the endpoint was to serve, one after another."""
    with closing(open_ledger(platform.settings.history, "penguins")) as ledger:
        wanted = [entry.plan for entry in ledger.entries() if entry.event is DeploymentEvent.WANTED]
    return [(plan.primary, plan.canary) for plan in wanted if plan is not None]


def runs(
    platform: Platform, action: str, *statuses: dg.DagsterRunStatus
) -> Sequence[dg.DagsterRun]:
    """The runs that were made for `action`, with any of `statuses` if some are named."""
    return platform.instance.get_runs(dg.RunsFilter(tags={ACTION_TAG: action}, statuses=statuses))


def test_a_rollout_survives_the_death_of_its_daemon_after_every_step(daemons: Daemons) -> None:
    platform = daemons.platform
    assert platform.run("deployment_job").success
    live_through(platform, TrafficConfig(samples=500, drift=Drift.SHIFT, column="body_mass_g"))
    degrade(platform, hours=(0, -1))

    daemons.live()
    assert steps(platform) == [Step.REQUESTED]
    assert runs(platform, RolloutAction.TRAINING) == []
    daemons.live(
        until=lambda: bool(runs(platform, RolloutAction.TRAINING, dg.DagsterRunStatus.STARTED))
    )
    daemons.live()
    assert steps(platform) == [Step.REQUESTED, Step.COMPARED, Step.CANARY]
    challenger = last(platform).version
    serve_both(platform, challenger, 150)
    daemons.live()
    assert steps(platform)[3:] == [Step.CANARY_PASSED]
    assert runs(platform, RolloutAction.PROMOTION) == []
    daemons.live()
    assert steps(platform)[4:] == [Step.PROMOTED]
    for hours in range(3):
        measured(platform, challenger, hours, 0.95)
    daemons.clock.write_text(str(4 * 3600), encoding="ascii")
    daemons.live()
    assert steps(platform)[5:] == [Step.HEALTHY]

    made = [run for action in (*RolloutAction, EVIDENCE_ACTION) for run in runs(platform, action)]
    assert {run.status for run in made} == {dg.DagsterRunStatus.SUCCESS}
    actions = Counter(run.tags[ACTION_TAG] for run in made)
    assert actions.pop(EVIDENCE_ACTION) >= 1
    assert actions == {
        RolloutAction.TRAINING: 1,
        RolloutAction.CANARY: 1,
        RolloutAction.PROMOTION: 1,
    }
    target = local_endpoint(platform.settings)
    assert deployed(platform) == [("1", None), ("1", challenger), (challenger, None)]
    assert target.invoke([ROW])[0].model_version == challenger
