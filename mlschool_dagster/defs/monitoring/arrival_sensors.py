"""Monitoring follows the capture store: one run per window in which captures or labels landed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from mlschool_dagster.capture.store import CaptureStore, Changes
from mlschool_dagster.capture.windows import Window, begin_with
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.keys import (
    CAPTURED_TRAFFIC,
    LABELS,
    PERFORMANCE_REPORT,
    REPORTS,
)
from mlschool_dagster.defs.monitoring.windows import (
    CAPTURES_TOKEN,
    LABELS_TOKEN,
    PARTITION_TAG,
    covered_token,
)
from mlschool_dagster.monitoring.reconciler import ReconcilerConfig, Run, RunStatus, Tick, reconcile
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles

INTERVAL_SECONDS = 2
"""Less than the 5 s between two iterations of Dagster's daemon: a sensor with an interval of 5 s is
skipped every other time, and evaluated only every 10 s."""

MAXIMUM_RUNS = 25
"""Number of newest runs of the same work that are read."""

MONITORED = (CAPTURED_TRAFFIC, LABELS, *REPORTS)

MONITORING_SECONDS = 600
"""Time limit of a monitoring run; one that takes longer has died with its machine."""

monitoring_job = dg.define_asset_job(
    "monitoring_job",
    dg.AssetSelection.assets(*MONITORED),
    description="Everything that is known of one hourly window. Choose it by the tag "
    "dagster/partition.",
    tags={"stage": "monitoring", "dagster/max_runtime": MONITORING_SECONDS},
)

FOLLOWING = ReconcilerConfig(
    backoff=timedelta(seconds=30), stale_after=timedelta(seconds=MONITORING_SECONDS)
)

RUN_KEY_TAG = "dagster/run_key"
STREAM_TAG = "stream"

_STATUSES = {
    dg.DagsterRunStatus.QUEUED: RunStatus.QUEUED,
    dg.DagsterRunStatus.SUCCESS: RunStatus.SUCCEEDED,
    dg.DagsterRunStatus.FAILURE: RunStatus.FAILED,
    dg.DagsterRunStatus.CANCELED: RunStatus.FAILED,
}


@dataclass(frozen=True, slots=True)
class Stream:
    """What lands in the store, and the assets that a landing brings up to date.

    ``reports`` must all have read a token for it to be covered.
    """

    name: str
    token_name: str
    selection: tuple[dg.AssetKey, ...]
    reports: tuple[dg.AssetKey, ...]


NEW_CAPTURES = Stream(
    name="captures",
    token_name=CAPTURES_TOKEN,
    selection=MONITORED,
    reports=REPORTS,
)
NEW_LABELS = Stream(
    name="labels",
    token_name=LABELS_TOKEN,
    # Labels may land before the captures' own run: the traffic's snapshot is written too.
    selection=(CAPTURED_TRAFFIC, LABELS, PERFORMANCE_REPORT),
    reports=(PERFORMANCE_REPORT,),
)


@dataclass(frozen=True, slots=True)
class FollowedStream:
    """A stream of a store, with Dagster's records of what has been made of it."""

    stream: Stream
    store: CaptureStore
    instance: dg.DagsterInstance

    def changes(self, cursor: str | None) -> Changes:
        """The windows in which something landed after `cursor`."""
        since = {"captures": self.store.captures_since, "labels": self.store.labels_since}
        return since[self.stream.name](cursor)

    def token(self, window: Window) -> str:
        """The store's present token of `window`."""
        tokens = {"captures": self.store.captures_token, "labels": self.store.labels_token}
        return tokens[self.stream.name](window)

    def coverage(self, window: Window) -> str | None:
        """The token that all of the stream's reports cover."""
        return covered_token(self.instance, window, self.stream.reports, self.stream.token_name)

    def runs(self, window: Window) -> Sequence[Run]:
        """The runs of `window`, however they were started, newest first."""
        filters = dg.RunsFilter(tags={PARTITION_TAG: window.key})
        records = self.instance.get_run_records(filters, MAXIMUM_RUNS)
        return [self._run(record) for record in records]

    def _run(self, record: dg.RunRecord) -> Run:
        run = record.dagster_run
        # Tokens of two streams may be equal, so that a run key alone does not identify the stream.
        own = run.tags.get(STREAM_TAG) == self.stream.name
        return Run(
            key=run.tags.get(RUN_KEY_TAG) if own else None,
            status=_STATUSES.get(run.status, RunStatus.STARTED),
            since=record.update_timestamp.replace(tzinfo=UTC) + behind(),
        )


def behind() -> timedelta:
    """By how much (0 or less) the platform's clock is behind the machine's, by which Dagster goes.

    Where it is ahead, the machine's counts: Dagster has no partition for what is yet to come.
    """
    return min(utc_now() - datetime.now(UTC), timedelta(0))


def _known(context: dg.SensorEvaluationContext, window: Window) -> str | None:
    """The window's partition, if this process knows it; else its tag alone leads a run to it."""
    repository = context.repository_def
    partitions = repository.get_job(monitoring_job.name).partitions_def if repository else None
    known = partitions is not None and partitions.has_partition_key(window.key)
    return window.key if known else None


def _idle(stream: Stream, tick: Tick) -> str:
    sentence = f"No window with new {stream.name} waits."
    if not tick.later:
        return sentence
    return (
        f"{sentence} A clock that is ahead wrote into {len(tick.later)} that have not begun yet, "
        f"the first is {tick.later[0]}."
    )


def build_arrival_sensor(
    stream: Stream, config: ReconcilerConfig = FOLLOWING
) -> dg.SensorDefinition:
    """The sensor ``new_<stream>_sensor``: one monitoring run per window touched."""

    @dg.sensor(
        name=f"new_{stream.name}_sensor",
        job=monitoring_job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Requests one monitoring run per window in which {stream.name} landed, again "
        "if it failed, until the reports cover all of them.",
    )
    def new_arrivals(
        context: dg.SensorEvaluationContext, captures: Captures, files: PlatformFiles
    ) -> dg.SensorResult:
        now = datetime.now(UTC) + behind()
        with captures.open() as store:
            followed = FollowedStream(stream, store, context.instance)
            tick = reconcile(context.cursor, followed, now, config)
        for message in tick.messages:
            context.log.warning(message)
        if tick.requests:
            # Runs load the code anew, and find their partitions there.
            first = min(request.window for request in tick.requests)
            begin_with(first, files.first_window, now)
        requests = [
            dg.RunRequest(
                run_key=request.key,
                partition_key=_known(context, request.window),
                asset_selection=stream.selection,
                tags={STREAM_TAG: stream.name, PARTITION_TAG: request.window.key},
            )
            for request in tick.requests
        ]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(_idle(stream, tick)),
            cursor=tick.state,
        )

    return new_arrivals
