"""The stage on which stories are played: a platform of their own, at another time, hour by hour."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dagster_internals import InstigatorType
from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.definitions import platform_files
from mlschool_dagster.defs.common import UNFINISHED
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    NEW_CAPTURES,
    NEW_LABELS,
    FollowedStream,
)
from mlschool_dagster.deployment.client import EndpointClient
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.jobs import run_config, run_job
from mlschool_dagster.local.platform import Say, local_endpoint
from mlschool_dagster.local.scenario_inbox import Inbox
from mlschool_dagster.local.scenario_story import Hour, Outcome, Story
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.serving.probes import probe_key
from mlschool_dagster.settings import Settings
from mlschool_dagster.simulation.config import TrafficConfig
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster.simulation.labeller import label_captures
from mlschool_dagster.simulation.traffic import simulate

if TYPE_CHECKING:
    import pandas as pd

PATIENCE_SECONDS = 2400.0
"""How long the platform may take to settle, be it after a day that passed by: less than an hour."""
POLL_SECONDS = 2.0
PULSE_SECONDS = 0.2
ONLOOKERS = ("automation_sensor", "dashboard_job", "health_job")
"""Who changes nothing: nobody waits for them."""
AUTOMATION_TAG = "dagster/from_automation_condition"
"""Tag of a run that an automation condition asked for."""
MARGIN = timedelta(minutes=15)
"""How long after its beginning an hour's traffic comes, and its labels before its end.

The traffic is later if the hour before took longer to settle: time never goes back.
"""


class Clock:
    """The time at which the platform lives: `path` is the file that `MLSCHOOL_CLOCK` names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, instant: datetime) -> None:
        """Make `instant` the present time; from then on it runs as any clock."""
        with replacing(self._path) as temporary:
            ahead = instant.timestamp() - time.time()
            temporary.write_text(str(ahead), encoding="ascii")

    def advance(self, instant: datetime) -> None:
        """Make `instant` the present time, unless that is later already."""
        self.set(max(instant, utc_now()))


@dataclass
class Pulse:
    """Counts of a client who asks all the time, whatever the platform does meanwhile."""

    requests: int = 0
    unanswered: int = 0


@contextmanager
def pulse(
    client: EndpointClient, key: str, frame: "pd.DataFrame", spec: DataSpec
) -> Iterator[Pulse]:
    """Requests at short intervals as long as the block lasts, each with an event id of its own.

    They are probes, which present the `key` of the endpoint, so that no report counts them.
    """
    counts, stop = Pulse(), threading.Event()
    rows: list[Any] = [
        {name: None if value != value else value for name, value in row.items()}
        for row in frame[spec.input_names].to_dict("records")
    ]

    def ask() -> None:
        while not stop.wait(PULSE_SECONDS):
            row = rows[counts.requests % len(rows)]
            counts.requests += 1
            try:
                name = f"{SMOKE_TEST_PREFIX}pulse-{counts.requests}"
                client.invoke([row], name, probe_key=key)
            except UserError:
                counts.unanswered += 1

    thread = threading.Thread(target=ask, name="pulse")
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Stage:
    """A running platform on which a story is played; `settings` and the environment are its own.

    It tells its alerts to the `inbox`.
    """

    settings: Settings
    clock: Clock
    inbox: Inbox
    say: Say
    first: dict[tuple[str, str], int] = field(default_factory=dict)
    told: list[tuple[int, str]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def play(self, story: Story, start: Window) -> Outcome:
        """Play `story` from the window `start` on.

        Raises:
            UserError: the platform did not settle, or an endpoint is away.
        """
        spec = load_spec(self.settings.spec)
        frame = read_data(self.settings.data, spec)
        self.clock.set(start.start - LENGTH)
        run_job("training_job", self.settings, self.say, run_config("training_job"))
        run_job("deployment_job", self.settings, self.say, run_config("deployment_job"))
        client = self._client(spec)
        files = platform_files(self.settings)
        store = open_store(self.settings.capture_store)
        requests = 0
        key = probe_key(local_endpoint(self.settings).config.home)
        with dg.DagsterInstance.get() as instance, pulse(client, key, frame, spec) as heartbeat:
            for number, hour in enumerate(story.hours):
                window = Window(start.start + number * LENGTH)
                self.clock.advance(window.start + MARGIN)
                log = GroundTruthLog(files.ground_truth(f"hour-{number}"))
                requests += self._send(hour, number, frame, spec, client, log)
                self.clock.advance(window.end - MARGIN)
                labelled = number - story.delay if story.delay is not None else -1
                if labelled >= 0:
                    labellers = story.hours[labelled].labellers
                    until = start.start + (labelled + 1) * LENGTH
                    truths = read_ground_truth(files.ground_truths)
                    label_captures(store, truths, spec, labellers, seed=number, until=until)
                self.clock.advance(window.end)
                if not hour.passes_by:
                    self._settle(store, instance)
                    self._look_around(number)
        store.close()
        return Outcome(
            self.first,
            self.told,
            self.versions,
            requests + heartbeat.requests,
            heartbeat.unanswered,
        )

    def _client(self, spec: DataSpec) -> EndpointClient:
        status = local_endpoint(self.settings).status()
        if status.serving is None:
            raise UserError(f"The endpoint does not run; see {self.settings.home / 'logs'}.")
        return EndpointClient(
            spec.name, status.url, token=self.settings.endpoint_token.reveal() or None
        )

    def _send(
        self,
        hour: Hour,
        number: int,
        frame: "pd.DataFrame",
        spec: DataSpec,
        client: EndpointClient,
        log: GroundTruthLog,
    ) -> int:
        if not hour.rows:
            self.say(f"window {number + 1}: no traffic")
            return 0
        config = TrafficConfig(
            samples=hour.rows,
            drift=hour.drift,
            share=hour.share,
            strength=hour.strength,
            seed=number,
        )
        with log:
            sent = simulate(frame, spec, client.invoke, config, lambda _: None, log.append)
        self.say(
            f"window {number + 1}: {sent.accepted} of {sent.sent} rows answered, "
            f"{sent.correct / max(sent.accepted, 1):.1%} of them rightly; drift: {sent.drift}"
        )
        return sent.sent

    def _settle(self, store: CaptureStore, instance: dg.DagsterInstance) -> None:
        """Wait until the reports cover everything, and no sensor has anything left to do."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        quiet_since = time.time()
        streams = [FollowedStream(stream, store, instance) for stream in (NEW_CAPTURES, NEW_LABELS)]
        while True:
            covered = all(s.coverage(w) == s.token(w) for s in streams for w in store.windows())
            if not covered or _runs_under_way(instance):
                quiet_since = time.time()
            elif _all_idle_since(instance, quiet_since):
                return
            if time.monotonic() > deadline:
                raise UserError(
                    f"The platform did not settle within {PATIENCE_SECONDS:.0f} s; see "
                    f"{self.settings.home / 'logs'}."
                )
            time.sleep(POLL_SECONDS)

    def _look_around(self, number: int) -> None:
        """Note what is known after an hour, and tell what is new."""
        history = MetricsHistory(self.settings.history)
        found = [(str(m.name), m.column) for m in history.read() if m.finding and not m.segment]
        history.close()
        ledger = open_ledger(self.settings.history)
        entries = ledger.entries()
        ledger.close()
        happened = [*found, *((str(entry.step), "") for entry in entries)]
        told = {entry.step: entry.reason for entry in entries}
        for what, column in dict.fromkeys(happened):
            if (what, column) not in self.first:
                self.first[what, column] = number
                of_column = f" of {column}" if column else ""
                reason = f": {told[what]}" if what in told else ""  # type: ignore[index]
                self.say(f"  {what}{of_column}{reason}")
        for sentence in self.inbox.take():
            self.told.append((number, sentence))
            self.say(f"  told: {sentence}")
        status = local_endpoint(self.settings).status()
        self.versions.append(status.serving.primary if status.serving else "none")


def _runs_under_way(instance: dg.DagsterInstance) -> bool:
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return any(
        run.job_name not in ONLOOKERS and AUTOMATION_TAG not in run.tags for run in unfinished
    )


def _all_idle_since(instance: dg.DagsterInstance, instant: float) -> bool:
    """Whether every sensor that is on has looked since `instant`, and found nothing to do."""
    return all(
        any(
            tick.is_completed and tick.timestamp >= instant and not tick.run_ids
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        )
        for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        if state.is_running and state.instigator_name not in ONLOOKERS
    )
