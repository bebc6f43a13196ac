"""The demonstration: the whole loop as a user would drive it, and a summary of what it showed."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg

from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    NEW_CAPTURES,
    NEW_LABELS,
    FollowedStream,
    Stream,
)
from mlschool_dagster.defs.monitoring.windows import PARTITION_TAG
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.jobs import run_config, run_job
from mlschool_dagster.local.platform import Platform, Say
from mlschool_dagster.local.summary import summary
from mlschool_dagster.settings import Settings

PATIENCE_SECONDS = 400.0
"""As long as a window may rest, on a platform that ran already, and a run may take."""
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The loop on a running `platform`."""

    settings: Settings
    platform: Platform
    say: Say

    def run(self) -> None:
        """Drive the loop from raw data to reports and print what came of it.

        Raises:
            UserError: a part of the loop did not happen.
        """
        store = open_store(self.settings.capture_store)
        with dg.DagsterInstance.get() as instance:
            self._run("training_job")
            self._run("deployment_job")
            captured = {window: store.captures_token(window) for window in store.windows()}
            before = sum(store.windows().values())
            self._run("traffic_job")
            landed = sum(store.windows().values()) - before
            if not landed:
                raise UserError("The traffic left no capture; see the endpoint's log.")
            self.say(f"{landed} captures landed; the daemon's sensor takes over")
            window = self._await_coverage(NEW_CAPTURES, store, instance, captured)
            labelled = {window: store.labels_token(window) for window in store.windows()}
            self._run("labeling_job")
            self.say("labels landed; the daemon's sensor takes over")
            self._await_coverage(NEW_LABELS, store, instance, labelled)
            # The automation sensor would make the page within a minute, when this platform is gone.
            run_job("dashboard_job", self.settings, self.say)
            for line in summary(instance, self.settings, self.platform, window, landed):
                self.say(line)

    def _run(self, job: str) -> None:
        run_job(job, self.settings, self.say, run_config(job))

    def _await_coverage(
        self,
        stream: Stream,
        store: CaptureStore,
        instance: dg.DagsterInstance,
        before: Mapping[Window, str],
    ) -> Window:
        """Wait until the daemon has reported on each window whose token is not the one `before`.

        Returns:
            The newest of them.
        """
        followed = FollowedStream(stream, store, instance)
        touched = [w for w in store.windows() if followed.token(w) != before.get(w)]
        if not touched:
            raise UserError(f"No {stream.name} landed; see {self.settings.home / 'logs'}.")
        deadline = time.monotonic() + PATIENCE_SECONDS
        reported: set[tuple[str, str]] = set()
        while waiting := [w for w in touched if followed.coverage(w) != followed.token(w)]:
            for change in _status_changes(instance, waiting, reported):
                self.say(f"  {change}")
            if time.monotonic() > deadline:
                names = ", ".join(window.key for window in waiting)
                raise UserError(
                    f"No report covers the {stream.name} of {names} after "
                    f"{PATIENCE_SECONDS:.0f} s; see the sensor's ticks at "
                    f"{self.platform.dagster_url}."
                )
            time.sleep(POLL_SECONDS)
        return max(touched)


def _status_changes(
    instance: dg.DagsterInstance, windows: list[Window], reported: set[tuple[str, str]]
) -> Iterator[str]:
    """Yield each status change of the windows' runs once."""
    for window in windows:
        filters = dg.RunsFilter(tags={PARTITION_TAG: window.key})
        for run in instance.get_runs(filters, limit=3):
            if run.is_finished:
                reported.add((run.run_id, run.status.value))
            elif (run.run_id, run.status.value) not in reported:
                reported.add((run.run_id, run.status.value))
                sensor = run.tags.get("dagster/sensor_name", "somebody")
                yield f"run for window {window.key}, requested by {sensor}: {run.status.value}"
