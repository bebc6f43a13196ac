"""The sensors of the closed loop, ticked by hand, and what a daemon would make of their ticks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from mlschool_dagster import clock
from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment import ledger as deployments
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.promotion.ledger import PromotionLedger, open_ledger
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster_tests.platform import Platform


@dataclass
class Sensor:
    """A sensor's ticks, each beginning with what the one before it left behind."""

    platform: Platform
    name: str
    cursor: str | None = None
    skip_reason: str = ""
    keys: set[str] = field(default_factory=set)

    def tick(self) -> Sequence[dg.RunRequest]:
        """The runs that one tick requests and that were not requested before."""
        sensor = self.platform.definitions.resolve_sensor_def(self.name)
        context = dg.build_sensor_context(
            instance=self.platform.instance,
            cursor=self.cursor,
            resources=self.platform.definitions.resources,
            definitions=self.platform.definitions,
        )
        data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        self.skip_reason = data.skip_message or ""
        assert bool(self.skip_reason) == (not data.run_requests)
        return [r for r in data.run_requests or () if r.run_key not in self.keys]

    def lose(self) -> Sequence[dg.RunRequest]:
        """A tick of a daemon that dies before it has acted on it."""
        before = self.cursor
        lost = self.tick()
        self.cursor = before
        return lost

    def carry_out(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run what was requested, as the daemon would."""
        assert request.job_name is not None
        self.keys.add(request.run_key or "")
        return self.platform.definitions.resolve_job_def(request.job_name).execute_in_process(
            run_config=request.run_config,
            tags={**request.tags, "dagster/run_key": request.run_key or ""},
            instance=self.platform.instance,
            raise_on_error=False,
        )

    def created(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """Have the requested run, as the daemon makes it, with that status."""
        assert request.job_name is not None
        self.keys.add(request.run_key or "")
        return self.platform.instance.create_run_for_job(
            self.platform.definitions.resolve_job_def(request.job_name),
            run_config=request.run_config,
            tags={**request.tags, "dagster/run_key": request.run_key or ""},
            status=status,
        )


def ledger(platform: Platform) -> PromotionLedger:
    """The platform's ledger."""
    return open_ledger(platform.settings.history)


def append(platform: Platform, entry: Entry) -> None:
    """Have somebody else append `entry`."""
    kept = ledger(platform)
    kept.append(entry)
    kept.close()


def steps(platform: Platform) -> list[Step]:
    """The steps in the ledger."""
    kept = ledger(platform)
    entries = kept.entries()
    kept.close()
    return [entry.step for entry in entries]


def last(platform: Platform) -> Entry:
    """The newest entry of the ledger."""
    kept = ledger(platform)
    entries = kept.entries()
    kept.close()
    return entries[-1]


def serves(
    platform: Platform, primary: str, canary: str = "", by: str = "somebody", hours_ago: float = 0
) -> None:
    """Have it recorded that the endpoint serves those versions; none really does."""
    plan = Plan(primary=primary, canary=canary or None, canary_share=0.1 if canary else 0.0)
    at = utc_now() - timedelta(hours=hours_ago)
    kept = deployments.open_ledger(platform.settings.history, "penguins")
    kept.append(
        deployments.DeploymentEntry(deployments.DeploymentEvent.SERVING, plan, by, "a reason", at)
    )
    kept.close()


def move_clock(monkeypatch: pytest.MonkeyPatch, folder: Path, ahead: timedelta) -> None:
    """Let the platform's clock in this process be `ahead`."""
    file = folder / "clock"
    file.write_text(str(ahead.total_seconds()), encoding="ascii")
    monkeypatch.setattr(clock, "_OFFSET_FILE", file)
