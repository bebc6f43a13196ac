"""Whatever is killed between a capture and its report: after a restart every capture is in one."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import dagster as dg
import pandas as pd
import psutil
import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    MONITORING_SECONDS,
    NEW_CAPTURES,
    FollowedStream,
)
from mlschool_dagster_tests.platform import (
    LATER,
    WINDOW,
    Platform,
    platform_at,
    processes,
    traffic,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 400.0


@pytest.fixture
def platform(trained: Path, tmp_path: Path) -> Iterator[Platform]:
    """A platform whose version 1 is the champion, as if it served."""
    with platform_at(shutil.copytree(trained, tmp_path / "home")) as platform:
        platform.registry().promote("1")
        yield platform


FAST = "mlschool_dagster_tests.defs.monitoring.fast_intervals"
SLOW = "mlschool_dagster_tests.defs.monitoring.slow_intervals"
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


def start_daemon(
    platform: Platform, module: str, settings: Mapping[str, str] = NO_SETTINGS
) -> subprocess.Popen[bytes]:
    """A Dagster daemon of `platform` with the code location `module`."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", module]
    environment = {**platform.subprocess_environment(), **settings}
    with (platform.home / "daemon.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def kill_processes(platform: Platform) -> None:
    """Kill whatever runs for `platform`, without a warning."""
    while family := processes(platform.home):
        for member in family:
            member.kill()
        psutil.wait_procs(family)


@contextmanager
def daemon(
    platform: Platform, module: str = FAST, settings: Mapping[str, str] = NO_SETTINGS
) -> Iterator[None]:
    """A Dagster daemon; what it started is killed with it at the end, without a warning."""
    process = start_daemon(platform, module, settings)
    try:
        yield
    finally:
        kill_processes(platform)
        process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def land(platform: Platform, window: Window, start: int = 0) -> None:
    """Three captures in `window`, numbered from `start`."""
    with platform.store() as store:
        store.append(traffic(platform.registry().reference("1"), 3, window, start=start))


def ticked(platform: Platform) -> bool:
    """Whether the sensor has looked at the store."""
    return any(
        platform.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        for state in platform.instance.all_instigator_state()
        if state.name == "new_captures_sensor"
    )


def runs(platform: Platform, *statuses: dg.DagsterRunStatus) -> bool:
    filters = dg.RunsFilter(job_name="monitoring_job", statuses=statuses)
    return bool(platform.instance.get_runs(filters, limit=1))


def covered(platform: Platform) -> bool:
    """Whether all three reports of every window cover all that has landed in it."""
    with platform.store() as store:
        followed = FollowedStream(NEW_CAPTURES, store, platform.instance)
        return all(followed.coverage(w) == followed.token(w) for w in store.windows())


def assert_every_capture_is_in_one_report(platform: Platform) -> None:
    frozen = Counter(
        event_id
        for path in (platform.files / "windows").glob("*/captured_traffic.parquet")
        for event_id in pd.read_parquet(path)["event_id"]
    )
    with platform.store() as store:
        assert frozen == Counter(
            event_id for window in store.windows() for event_id in store.read(window)["event_id"]
        )


def test_a_daemon_killed_between_capture_and_report_loses_nothing(platform: Platform) -> None:
    with daemon(platform):
        wait_until(lambda: ticked(platform))
        land(platform, WINDOW)
    assert not covered(platform)
    land(platform, WINDOW, start=3)
    land(platform, LATER)
    with daemon(platform):
        wait_until(lambda: covered(platform))
    assert_every_capture_is_in_one_report(platform)


def test_a_monitoring_run_killed_with_its_daemon_loses_nothing(platform: Platform) -> None:
    """However long a run may take: its process is seen to be dead long before that."""
    assert PATIENCE_SECONDS < MONITORING_SECONDS
    land(platform, WINDOW)
    with daemon(platform, SLOW):
        wait_until(lambda: runs(platform, dg.DagsterRunStatus.STARTED))
    assert not covered(platform)
    assert runs(platform, dg.DagsterRunStatus.STARTED)
    land(platform, LATER)
    with daemon(platform, SLOW):
        wait_until(lambda: covered(platform))
    assert_every_capture_is_in_one_report(platform)
