"""Runner of scenarios: simulates traffic on an isolated platform under a shifted clock."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
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
from mlschool_dagster.local.scenarios.scenario import Hour, Outcome, Scenario
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.serving.probes import probe_key
from mlschool_dagster.settings import Settings
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster.simulation.labeller import label_captures
from mlschool_dagster.simulation.traffic import TrafficConfig, simulate

if TYPE_CHECKING:
    import pandas as pd

SETTLE_TIMEOUT_SECONDS = 2400.0
"""Upper bound for the platform to settle, even after a day of windows; less than an hour."""
POLL_SECONDS = 2.0
REQUEST_INTERVAL_SECONDS = 0.2
NOT_AWAITED = ("automation_sensor", "dashboard_job", "health_job")
"""Sensors and jobs without effect on a scenario, which the runner does not wait for."""
AUTOMATION_TAG = "dagster/from_automation_condition"
"""Tag of a run requested by an automation condition."""
MARGIN = timedelta(minutes=15)
"""Time between the start of an hour and its traffic, and between its labels and its end.

The traffic is later if the hour before took longer to settle, as time never goes back.
"""


class Clock:
    """The platform's shifted clock; `path` is the file that `MLSCHOOL_CLOCK` names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, instant: datetime) -> None:
        """Set the present time to `instant`; it goes on in real time."""
        with replacing(self._path) as temporary:
            ahead = instant.timestamp() - time.time()
            temporary.write_text(str(ahead), encoding="ascii")

    def advance(self, instant: datetime) -> None:
        """Set the present time to `instant`, unless it is later already."""
        self.set(max(instant, utc_now()))


class Inbox:
    """Receiver of notifications at the Apprise address ``url``."""

    def __init__(self, url: str, sentences: "SimpleQueue[str]") -> None:
        self.url = url
        self._sentences = sentences

    def take(self) -> list[str]:
        """Messages received since the last call, in order of arrival."""
        return [self._sentences.get() for _ in range(self._sentences.qsize())]


@contextmanager
def inbox() -> Iterator[Inbox]:
    """Run a webhook on loopback that collects notifications."""
    sentences: SimpleQueue[str] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for paragraph in document["message"].split("\n\n"):
                # Time and kind, the sentence, the link.
                sentences.put(paragraph.splitlines()[1])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing: the notifications are in the log already."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="inbox")
        thread.start()
        try:
            yield Inbox(f"json://127.0.0.1:{server.server_port}", sentences)
        finally:
            server.shutdown()
            thread.join()


@dataclass
class RequestCounts:
    """Request counts of a client that sends continuously."""

    requests: int = 0
    unanswered: int = 0


@contextmanager
def continuous_requests(
    client: EndpointClient, key: str, frame: "pd.DataFrame", spec: DataSpec
) -> Iterator[RequestCounts]:
    """Send requests at short intervals during the block, each with its own event id.

    They are probes with the endpoint's probe `key`, so that no report counts them.
    """
    counts, stop = RequestCounts(), threading.Event()
    rows: list[Any] = [
        {name: None if value != value else value for name, value in row.items()}
        for row in frame[spec.input_names].to_dict("records")
    ]

    def send() -> None:
        while not stop.wait(REQUEST_INTERVAL_SECONDS):
            row = rows[counts.requests % len(rows)]
            counts.requests += 1
            try:
                name = f"{SMOKE_TEST_PREFIX}pulse-{counts.requests}"
                client.invoke([row], name, probe_key=key)
            except UserError:
                counts.unanswered += 1

    thread = threading.Thread(target=send, name="continuous-requests")
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class ScenarioRunner:
    """Run scenarios on a running platform, whose alerts go to `inbox`.

    `settings` and the environment are those of the isolated platform.
    """

    settings: Settings
    clock: Clock
    inbox: Inbox
    say: Say
    first: dict[tuple[str, str], int] = field(default_factory=dict)
    alerts: list[tuple[int, str]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def run(self, scenario: Scenario, start: Window) -> Outcome:
        """Run `scenario` from the window `start` on and return the observations.

        Raises:
            UserError: the platform did not settle, or the endpoint is unavailable.
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
        with (
            dg.DagsterInstance.get() as instance,
            continuous_requests(client, key, frame, spec) as steady,
        ):
            for number, hour in enumerate(scenario.hours):
                window = Window(start.start + number * LENGTH)
                self.clock.advance(window.start + MARGIN)
                log = GroundTruthLog(files.ground_truth(f"hour-{number}"))
                requests += self._send(hour, number, frame, spec, client, log)
                self.clock.advance(window.end - MARGIN)
                labelled = number - scenario.delay if scenario.delay is not None else -1
                if labelled >= 0:
                    labellers = scenario.hours[labelled].labellers
                    until = start.start + (labelled + 1) * LENGTH
                    truths = read_ground_truth(files.ground_truths)
                    label_captures(store, truths, spec, labellers, seed=number, until=until)
                self.clock.advance(window.end)
                if not hour.skip_settling:
                    self._settle(store, instance)
                    self._record_state(number)
        store.close()
        return Outcome(
            self.first,
            self.alerts,
            self.versions,
            requests + steady.requests,
            steady.unanswered,
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
        deadline = time.monotonic() + SETTLE_TIMEOUT_SECONDS
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
                    f"The platform did not settle within {SETTLE_TIMEOUT_SECONDS:.0f} s; see "
                    f"{self.settings.home / 'logs'}."
                )
            time.sleep(POLL_SECONDS)

    def _record_state(self, number: int) -> None:
        """Record events, alerts and the serving version after an hour; print new events."""
        history = MetricsHistory(self.settings.history)
        findings = [(str(m.name), m.column) for m in history.read() if m.finding and not m.segment]
        history.close()
        ledger = open_ledger(self.settings.history)
        entries = ledger.entries()
        ledger.close()
        happened = [*findings, *((str(entry.step), "") for entry in entries)]
        reasons = {entry.step: entry.reason for entry in entries}
        for what, column in dict.fromkeys(happened):
            if (what, column) not in self.first:
                self.first[what, column] = number
                of_column = f" of {column}" if column else ""
                reason = f": {reasons[what]}" if what in reasons else ""  # type: ignore[index]
                self.say(f"  {what}{of_column}{reason}")
        for sentence in self.inbox.take():
            self.alerts.append((number, sentence))
            self.say(f"  alert: {sentence}")
        status = local_endpoint(self.settings).status()
        self.versions.append(status.serving.primary if status.serving else "none")


def _runs_under_way(instance: dg.DagsterInstance) -> bool:
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return any(
        run.job_name not in NOT_AWAITED and AUTOMATION_TAG not in run.tags for run in unfinished
    )


def _all_idle_since(instance: dg.DagsterInstance, instant: float) -> bool:
    """Whether each running sensor has ticked since `instant` without requesting a run."""
    return all(
        any(
            tick.is_completed and tick.timestamp >= instant and not tick.run_ids
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        )
        for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        if state.is_running and state.instigator_name not in NOT_AWAITED
    )
