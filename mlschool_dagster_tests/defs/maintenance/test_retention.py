"""Retention deletes what is old and known, reports what it would delete, keeps what is needed."""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.keys import CAPTURED_TRAFFIC, REPORTS
from mlschool_dagster.defs.maintenance import retention
from mlschool_dagster.defs.monitoring.windows import CAPTURES_TOKEN, LABELS_TOKEN, covered_token
from mlschool_dagster.monitoring.metrics import Metric, MetricName
from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.owned import MARKER, is_owned, make_owned
from mlschool_dagster_tests.capture.samples import NOON, capture, label
from mlschool_dagster_tests.platform import LATER, WINDOW, Platform, sentence

EVERYTHING = {"capture_days": 30, "report_days": 30, "metric_days": 30, "run_days": 30}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[datetime]:
    """A day on which all that was made until now is old."""
    day = utc_now() + timedelta(days=60)
    monkeypatch.setattr(retention, "utc_now", lambda: day)
    yield day


def land(platform: Platform, window: Window = WINDOW) -> None:
    """Two captures in `window`, one of them labelled."""
    with platform.store() as store:
        ids = [f"{window.key}-{number}" for number in range(2)]
        store.append([capture(event_id, window.start - NOON) for event_id in ids])
        store.append_labels([label(ids[0])])


def report(platform: Platform, window: Window = WINDOW) -> None:
    """Have every report of `window` say that it has read what the window holds now."""
    with platform.store() as store:
        revision = store.revision(window)
    for name in REPORTS:
        read = {CAPTURES_TOKEN: revision.captures_token, LABELS_TOKEN: revision.labels_token}
        platform.instance.report_runless_asset_event(
            dg.AssetMaterialization(name, metadata=read, partition=window.key)
        )


def retain(platform: Platform, **config: Any) -> dict[str, dict[str, Any]]:
    """What the job tells, by kind."""
    result = platform.run("retention_job", {"retention": config})
    assert result.success
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    metadata = output.step_output_data.metadata
    rows = metadata["to delete" if metadata["dry_run"].value else "deleted"]
    if not isinstance(rows, dg.TableMetadataValue):
        return {}
    return {str(record.data["kind"]): dict(record.data) for record in rows.records}


def test_by_default_nothing_is_even_looked_for(platform: Platform, later: datetime) -> None:
    land(platform)
    report(platform)
    assert retain(platform) == {}


def test_a_dry_run_reports_what_it_leaves(platform: Platform, later: datetime) -> None:
    land(platform)
    report(platform)
    frozen = platform.run("monitoring_job", window=WINDOW, assets=["captured_traffic"])
    deletions = retain(platform, **EVERYTHING)
    assert (deletions["captures"]["windows"], deletions["captures"]["items"]) == (1, 2)
    assert (deletions["files"]["windows"], deletions["files"]["items"]) == (1, 1)
    assert platform.instance.has_run(frozen.run_id)
    with platform.store() as store:
        assert store.count(WINDOW) == 2
    again = retain(platform, **EVERYTHING, dry_run=False)
    for kind in ("captures", "files", "metrics"):
        assert again[kind] == deletions[kind]


def test_what_no_report_covers_is_kept_however_old(platform: Platform, later: datetime) -> None:
    for window in (WINDOW, LATER):
        land(platform, window)
        report(platform, window)
    with platform.store() as store:
        store.append_labels([label(f"{LATER.key}-1")])
    deletions = retain(platform, capture_days=30, dry_run=False)["captures"]
    assert (deletions["windows"], deletions["items"], deletions["kept"]) == (1, 2, 1)
    assert "every report" in deletions["remark"]
    with platform.store() as store:
        assert store.newest_windows() == [LATER]
        assert len(store.read_labels(LATER)) == 2


def test_what_is_young_is_kept(platform: Platform) -> None:
    land(platform)
    report(platform)
    platform.run("monitoring_job", window=WINDOW, assets=["captured_traffic"])
    deletions = retain(platform, **EVERYTHING, dry_run=False)
    assert {row["items"] for row in deletions.values()} == {0}


def test_metrics_and_files_of_old_windows_go(platform: Platform, later: datetime) -> None:
    young = Window.of(later - timedelta(days=2))
    history = MetricsHistory(platform.settings.history)
    for window in (WINDOW, young):
        history.record(window, "volume", [Metric(window, MetricName.ROWS, 1.0, rows=1)])
    windows = platform.files / "windows"
    for name in (WINDOW.folder, young.folder, "notes"):
        make_owned(windows / name)
        (windows / name / "drift_report.html").touch()
    deletions = retain(platform, report_days=30, metric_days=30, dry_run=False)
    assert (deletions["files"]["items"], deletions["metrics"]["items"]) == (1, 1)
    assert [metric.window for metric in history.read()] == [young]
    assert sorted(path.name for path in windows.iterdir()) == sorted([young.folder, "notes"])
    history.close()


def test_files_of_old_runs_and_data_sets_that_nothing_rests_on_go(platform: Platform) -> None:
    def old(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
        return path

    assert platform.run("training_job", assets=["raw_penguins"]).success
    (newest,) = (platform.files / "data" / "raw_penguins").glob("*.parquet")
    os.utime(newest, (0, 0))
    superseded = old(newest.with_name(f"{'0' * 64}.parquet"))
    ours, young, foreign = (platform.files / "batch_predictions" / name for name in "abc")
    for folder in (ours, young):
        make_owned(folder)
    for folder in (ours, foreign):
        old(folder / "predictions.parquet")
    os.utime(ours / MARKER, (0, 0))
    (young / "predictions.parquet").touch()
    notes = old(platform.files / "data" / "raw_penguins" / "notes.parquet")
    for dry_run in (True, False):
        deletions = retain(platform, report_days=30, dry_run=dry_run)
        assert superseded.exists() == ours.exists() == dry_run
        assert deletions["run files"]["items"] == 1
        assert (deletions["data sets"]["items"], deletions["data sets"]["kept"]) == (1, 1)
    assert all(path.exists() for path in (newest, notes, young, foreign))


def test_only_folders_that_the_platform_made_go(platform: Platform, later: datetime) -> None:
    windows = platform.files / "windows"
    windows.mkdir(parents=True)
    hours = [Window(WINDOW.start + number * (WINDOW.end - WINDOW.start)) for number in range(5)]
    link, file, foreign, empty, ours = (windows / hour.folder for hour in hours)
    outside = platform.home / "outside"
    outside.mkdir()
    (outside / "drift_report.html").touch()
    link.symlink_to(outside)
    file.touch()
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    empty.mkdir()
    make_owned(ours)
    (ours / "anything").touch()
    (ours / "link").symlink_to(outside)
    deletions = retain(platform, report_days=30, dry_run=True)["files"]
    assert (deletions["windows"], deletions["items"], deletions["kept"]) == (1, 1, 4)
    assert ours.exists()
    deletions = retain(platform, report_days=30, dry_run=False)["files"]
    assert (deletions["windows"], deletions["items"], deletions["kept"]) == (1, 1, 4)
    assert f"{link} was not made by the platform" in deletions["remark"]
    assert sorted(windows.iterdir()) == [link, file, foreign, empty]
    assert (outside / "drift_report.html").exists()


def test_one_folder_that_cannot_be_removed_stops_no_other(
    platform: Platform, later: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [platform.files / "windows" / window.folder for window in (WINDOW, LATER)]
    for folder in folders:
        make_owned(folder)
        (folder / "file").touch()
    unlink = Path.unlink

    def unlink_all_but_one(path: Path, missing_ok: bool = False) -> None:
        if path == folders[0] / "file":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_all_but_one)
    message = sentence(
        platform.run("retention_job", {"retention": {"report_days": 30, "dry_run": False}})
    )
    assert f"{folders[0]}/file (Operation not permitted)" in message
    assert [folder.exists() for folder in folders] == [True, False]


def test_what_monitoring_writes_is_marked(platform: Platform, later: datetime) -> None:
    land(platform)
    report(platform)
    platform.run("monitoring_job", window=WINDOW, assets=["captured_traffic"])
    assert is_owned(platform.files / "windows" / WINDOW.folder)


def test_runs_go_but_for_those_that_made_the_newest_state(
    platform: Platform, later: datetime
) -> None:
    land(platform)
    first, second = (
        platform.run("monitoring_job", window=WINDOW, assets=["captured_traffic", "labels"]).run_id
        for _ in range(2)
    )
    gone = platform.run("monitoring_job", window=LATER, assets=["captured_traffic"]).run_id
    idle = platform.run("labeling_job").run_id
    newest = platform.run("monitoring_job", window=WINDOW, assets=["captured_traffic"]).run_id
    deletions = retain(platform, run_days=30, dry_run=False)["runs"]
    kept = {
        run_id
        for run_id in (first, second, gone, idle, newest)
        if platform.instance.has_run(run_id)
    }
    # The second made the newest labels; the window of `gone` has no captures.
    assert kept == {second, newest, idle}
    assert (deletions["items"], deletions["kept"]) == (2, 3)
    files = {path.stem for path in Path(platform.environment["DAGSTER_HOME"]).rglob("*.db")}
    assert not {first, gone} & files
    with platform.store() as store:
        token = store.captures_token(WINDOW)
    assert covered_token(platform.instance, WINDOW, [CAPTURED_TRAFFIC], CAPTURES_TOKEN) == token


def test_a_negative_number_of_days_is_reported(platform: Platform) -> None:
    message = sentence(platform.run("retention_job", {"retention": {"run_days": -1}}))
    assert message.startswith("-1 days cannot be kept")
