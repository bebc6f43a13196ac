"""The sensors that follow the capture store: one run per window touched, until it is covered."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.keys import (
    CAPTURED_TRAFFIC,
    LABELS,
    PERFORMANCE_REPORT,
)
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    MONITORED,
    NEW_CAPTURES,
    NEW_LABELS,
    Stream,
    build_arrival_sensor,
)
from mlschool_dagster.monitoring.reconciler import ReconcilerConfig
from mlschool_dagster_tests.capture.samples import NOON, capture, label
from mlschool_dagster_tests.platform import LATER, WINDOW, Platform

FAST = ReconcilerConfig(backoff=timedelta(0), stale_after=timedelta(minutes=10))


class Ticks:
    """A sensor's ticks, each beginning with what the one before it left behind."""

    def __init__(self, platform: Platform, stream: Stream) -> None:
        self.platform = platform
        self.stream = stream
        self.cursor: str | None = None
        self.skipped = ""
        self.sensor = build_arrival_sensor(stream, FAST)

    def tick(self) -> Sequence[dg.RunRequest]:
        """The runs that one tick requests."""
        context = dg.build_sensor_context(
            instance=self.platform.instance,
            cursor=self.cursor,
            resources=self.platform.definitions.resources,
            definitions=self.platform.definitions,
        )
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        self.skipped = data.skip_message or ""
        assert (data.skip_message is None) == bool(data.run_requests)
        return data.run_requests or ()

    def created(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        """Have the requested run, as the daemon makes it, with that status."""
        job = self.platform.definitions.resolve_job_def("monitoring_job")
        self.platform.instance.create_run_for_job(
            job,
            tags={
                **request.tags,
                "dagster/run_key": request.run_key or "",
                "dagster/partition": request.tags["dagster/partition"],
            },
            status=status,
        )

    def present(self, window: Window) -> str:
        """The token of what `window` holds now."""
        with self.platform.store() as store:
            return str(getattr(store.revision(window), self.stream.token_name))

    def report(self, window: Window, read: str) -> None:
        """Have every report of `window` that the stream waits for say that it has read `read`."""
        for report in self.stream.reports:
            self.platform.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    report, metadata={self.stream.token_name: read}, partition=window.key
                )
            )


@pytest.fixture(params=[NEW_CAPTURES, NEW_LABELS], ids=["captures", "labels"])
def ticks(platform: Platform, request: pytest.FixtureRequest) -> Ticks:
    return Ticks(platform, request.param)


def land(platform: Platform, event_id: str, window: Window = WINDOW) -> None:
    """A labelled capture in `window`."""
    with platform.store() as store:
        store.append([capture(event_id, window.start - NOON)])
        store.append_labels([label(event_id)])


def windows(requests: Sequence[dg.RunRequest]) -> list[str | None]:
    return [request.partition_key for request in requests]


def test_no_look_of_the_daemon_comes_too_early_for_the_sensor(ticks: Ticks) -> None:
    interval = ticks.sensor.minimum_interval_seconds
    assert interval is not None
    assert interval < MIN_INTERVAL_LOOP_TIME - 1


def test_nothing_new_asks_for_nothing(ticks: Ticks) -> None:
    assert ticks.tick() == ()


def test_a_landing_asks_for_one_run_of_its_window(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    land(ticks.platform, "b")
    (request,) = ticks.tick()
    assert request.partition_key == WINDOW.key
    assert request.run_key is not None
    assert request.run_key.startswith(f"{WINDOW.key}@")
    assert set(request.asset_selection or ()) == set(ticks.stream.selection)
    assert request.tags["stream"] == ticks.stream.name


def test_two_windows_ask_for_two_runs(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    land(ticks.platform, "b", LATER)
    assert windows(ticks.tick()) == [WINDOW.key, LATER.key]


def test_a_covered_window_asks_for_nothing_until_something_lands(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    (first,) = ticks.tick()
    ticks.created(first, dg.DagsterRunStatus.SUCCESS)
    ticks.report(WINDOW, ticks.present(WINDOW))
    assert ticks.tick() == ()
    land(ticks.platform, "b")
    (second,) = ticks.tick()
    assert second.partition_key == WINDOW.key
    assert second.run_key != first.run_key


def test_reports_that_read_less_than_has_landed_are_asked_for_again(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    (first,) = ticks.tick()
    earlier = ticks.present(WINDOW)
    land(ticks.platform, "b")
    ticks.report(WINDOW, earlier)
    ticks.created(first, dg.DagsterRunStatus.SUCCESS)
    assert windows(ticks.tick()) == [WINDOW.key]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_failed_is_asked_for_again_by_another_key(
    ticks: Ticks, status: dg.DagsterRunStatus
) -> None:
    land(ticks.platform, "a")
    (first,) = ticks.tick()
    ticks.created(first, status)
    (second,) = ticks.tick()
    assert second.partition_key == first.partition_key
    assert second.run_key != first.run_key


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_under_way_is_waited_for(ticks: Ticks, status: dg.DagsterRunStatus) -> None:
    land(ticks.platform, "a")
    (request,) = ticks.tick()
    ticks.created(request, status)
    assert ticks.tick() == ()


def test_the_runs_of_one_stream_are_no_attempts_of_the_other(platform: Platform) -> None:
    land(platform, "a")
    captures, labels = Ticks(platform, NEW_CAPTURES), Ticks(platform, NEW_LABELS)
    for _ in range(FAST.max_attempts):
        (request,) = captures.tick()
        captures.created(request, dg.DagsterRunStatus.FAILURE)
    assert captures.tick() == ()
    assert windows(labels.tick()) == [WINDOW.key]


def test_a_tick_whose_requests_were_lost_is_repeated_by_the_same_keys(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    lost = ticks.tick()
    ticks.cursor = None
    assert [request.run_key for request in ticks.tick()] == [r.run_key for r in lost]


def test_a_request_that_never_became_a_run_is_repeated(ticks: Ticks) -> None:
    land(ticks.platform, "a")
    requested = ticks.tick()
    assert [request.run_key for request in ticks.tick()] == [r.run_key for r in requested]


def test_a_cursor_that_is_none_is_reported_in_one_sentence(ticks: Ticks) -> None:
    ticks.cursor = "17"
    with pytest.raises(Exception, match="reset the cursor in the UI"):
        ticks.tick()


def test_captures_bring_everything_up_to_date_and_labels_what_depends_on_them() -> None:
    assert set(NEW_CAPTURES.selection) == set(MONITORED)
    assert set(NEW_LABELS.selection) == {CAPTURED_TRAFFIC, LABELS, PERFORMANCE_REPORT}


def test_labels_that_come_before_their_captures_wait_for_them(platform: Platform) -> None:
    ticks = Ticks(platform, NEW_LABELS)
    with platform.store() as store:
        store.append_labels([label("a")])
    assert ticks.tick() == ()


def test_an_odd_window_neither_stops_the_others_nor_is_forgotten(ticks: Ticks) -> None:
    """Clocks two hours ahead, of two years ago, and never set: each is dealt with by itself."""
    ahead = Window(Window.of(utc_now()).start + timedelta(hours=2))
    old = Window.of(utc_now() - timedelta(days=800))
    unset = Window.of(datetime(1970, 1, 2, tzinfo=UTC))
    for number, window in enumerate((ahead, old, WINDOW, unset)):
        land(ticks.platform, str(number), window)
    requests = ticks.tick()
    tags = [request.tags["dagster/partition"] for request in requests]
    assert tags == [old.key, WINDOW.key]
    assert windows(requests) == [None, WINDOW.key]
    # Whoever loads the code from now on knows the old one.
    assert partitions().has_partition_key(old.key)
    assert not partitions().has_partition_key(unset.key)
    for request, window in zip(requests, (old, WINDOW), strict=True):
        ticks.created(request, dg.DagsterRunStatus.SUCCESS)
        ticks.report(window, ticks.present(window))
    assert ticks.tick() == ()
    assert ahead.key in ticks.skipped


def partitions() -> dg.PartitionsDefinition[str]:
    found = build_definitions().resolve_job_def("monitoring_job").partitions_def
    assert found is not None
    return found
