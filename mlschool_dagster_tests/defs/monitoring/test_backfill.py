"""A backfill works on many windows at once, and the sensors leave them to it."""

import subprocess
import sys
from collections import Counter
from datetime import timedelta

import dagster as dg
import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.defs.keys import REPORTS
from mlschool_dagster.defs.monitoring.arrival_sensors import NEW_CAPTURES
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster_tests.capture.samples import NOON, capture
from mlschool_dagster_tests.defs.monitoring.test_arrival_sensors import Ticks
from mlschool_dagster_tests.defs.monitoring.test_crashes import covered, daemon, land, wait_until
from mlschool_dagster_tests.platform import WINDOW, Platform

MODULE = "mlschool_dagster_tests.defs.monitoring.slow_intervals"
WINDOWS = [Window(WINDOW.start - timedelta(hours=hours)) for hours in range(5, -1, -1)]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_window_that_a_backfill_works_on_is_left_to_it(
    platform: Platform, status: dg.DagsterRunStatus
) -> None:
    with platform.store() as store:
        store.append([capture("a", WINDOW.start - NOON)])
    ticks = Ticks(platform, NEW_CAPTURES)
    platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def("monitoring_job"),
        tags={"dagster/backfill": "of somebody", "dagster/partition": WINDOW.key},
        status=status,
    )
    assert ticks.tick() == ()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_backfill_reports_on_each_window_once(trained_platform: Platform) -> None:
    platform = trained_platform
    platform.registry().promote("1")
    for window in WINDOWS:
        land(platform, window)
    command = [
        *(sys.executable, "-m", "dagster", "job", "backfill", "-m", MODULE, "-j", "monitoring_job"),
        *("--from", WINDOWS[0].key, "--to", WINDOWS[-1].key, "--noprompt"),
    ]
    subprocess.run(command, env=platform.subprocess_environment(), check=True)
    with daemon(platform, MODULE):
        wait_until(lambda: covered(platform))
        wait_until(lambda: all(run.is_finished for run in platform.instance.get_runs()))
    runs = platform.instance.get_runs(dg.RunsFilter(job_name="monitoring_job"))
    assert Counter(run.tags["dagster/partition"] for run in runs) == {w.key: 1 for w in WINDOWS}
    assert all("dagster/backfill" in run.tags for run in runs)
    history = MetricsHistory(platform.settings.history)
    recorded = history.read()
    history.close()
    said = Counter((m.window, m.name, m.column, m.segment, m.version) for m in recorded)
    assert set(said.values()) == {1}
    assert {metric.window for metric in recorded} == set(WINDOWS)
    for report in REPORTS:
        assert (
            len(list((platform.files / "windows").glob(f"*/{report.to_user_string()}.html"))) == 6
        )
