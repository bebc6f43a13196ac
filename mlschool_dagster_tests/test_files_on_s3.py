"""Everything that runs leave for each other works on a bucket as in a folder."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlschool_dagster.capture.records import LABEL_COLUMNS, as_columns
from mlschool_dagster.capture.windows import Window, begin_with, first_window
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.dataset.tables import content_digest, read_data
from mlschool_dagster.definitions import platform_files
from mlschool_dagster.defs.data.datasets import read_dataset, write_dataset
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.report_server import ReportPages
from mlschool_dagster.monitoring.retention import delete_files
from mlschool_dagster.monitoring.snapshot import ParquetSnapshot, write_labels
from mlschool_dagster.owned import MARKER
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.serving.batch import score
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster.storage import MANIFEST
from mlschool_dagster_tests.platform import WINDOW as PAST
from mlschool_dagster_tests.platform import metadata, platform_at, traffic, truth
from mlschool_dagster_tests.serving.tiny_model import tiny_model
from mlschool_dagster_tests.worlds import DATA

NOW = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
WINDOW = Window.of(NOW)


@pytest.fixture
def files(s3: str, tmp_path: Path) -> Iterator[PlatformFiles]:
    yield PlatformFiles(
        root=f"{s3}/platform",
        cache=str(tmp_path / "cache"),
        version_cache=str(tmp_path / "versions"),
        compilation_cache=str(tmp_path / "jax"),
    )
    # Nothing but copies is left on this machine.
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "folder"}


def test_a_data_set_is_found_by_its_content(files: PlatformFiles, penguins: pd.DataFrame) -> None:
    first, place = write_dataset(files, "penguins", penguins)
    second, _ = write_dataset(files, "penguins", penguins.head(10))
    assert place.uri == f"{files.root}/data/penguins/{first}.parquet"
    assert content_digest(read_dataset(files, "penguins", first)) == first
    assert len(read_dataset(files, "penguins", second)) == 10
    with pytest.raises(UserError, match=r"penguins is not at s3://.* any more; materialize it"):
        read_dataset(files, "penguins", "0")


def test_raw_data_is_read_from_a_bucket(
    s3: str, files: PlatformFiles, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    source = (DATA / "penguins.csv").read_bytes()
    header, *lines = source.splitlines(keepends=True)
    folder = files.location(f"{s3}/raw")
    (folder / "penguins.csv").write(source)
    frame = read_data(f"{s3}/raw/penguins.csv", spec)
    pd.testing.assert_frame_equal(frame, penguins)
    (folder / "penguins.csv").write(header + b"".join(lines[:100]))
    (folder / "rest.csv").write(header + b"".join(lines[100:]))
    (folder / "notes.txt").write(b"no data")
    split = read_data(f"{s3}/raw", spec)
    pd.testing.assert_frame_equal(split.reset_index(drop=True), penguins.reset_index(drop=True))
    (folder / "rest.csv").write(b"\xff")
    with pytest.raises(UserError, match=rf"^{s3}/raw/rest.csv is not UTF-8"):
        read_data(f"{s3}/raw", spec)
    for nothing in (f"{s3}/nothing", f"{s3}/nothing.csv"):
        with pytest.raises(UserError, match=rf"{nothing}"):
            read_data(nothing, spec)


def test_a_batch_goes_from_bucket_to_bucket(s3: str, files: PlatformFiles) -> None:
    files.location(f"{s3}/in/penguins.csv").write((DATA / "penguins.csv").read_bytes())
    summary = score(f"{s3}/in", files.batch("run"), tiny_model(), "7")
    assert summary.predictions == f"{files.root}/batch_predictions/run/predictions.parquet"
    found = pd.read_parquet(files.location(summary.predictions).local())
    assert (len(found), summary.predicted, len(summary.head)) == (344, 344, 8)
    with pytest.raises(UserError, match="among their input"):
        score(f"{s3}/in/", files.location(f"{s3}/in"), tiny_model(), "7")


def test_a_snapshot_is_read_in_pieces(files: PlatformFiles) -> None:
    place = files.new_in_window(WINDOW, "labels.parquet")
    rows = [(f"event {number}", "Gentoo", number, "clinic") for number in range(344)]
    with place.writing() as path:
        write_labels([as_columns(rows, LABEL_COLUMNS)], path, state="t")
    snapshot = ParquetSnapshot(place.local())
    assert (snapshot.rows, snapshot.facts) == (344, {"state": "t"})
    assert sum(map(len, snapshot.chunks())) == 344


def test_retention_removes_old_windows_and_nobody_elses(files: PlatformFiles) -> None:
    for hours in (0, 1, 2):
        window = Window.of(NOW - timedelta(hours=hours))
        files.new_in_window(window, "drift_report.html").write(b"page")
    foreign = files.windows / Window.of(NOW - timedelta(hours=3)).folder
    (foreign / "thesis.txt").write(b"")
    assert not foreign.make_owned()
    deletion = delete_files(files.windows, WINDOW.start, dry_run=True)
    assert (deletion.windows, deletion.items, deletion.kept) == (2, 2, 1)
    deletion = delete_files(files.windows, WINDOW.start, dry_run=False)
    assert (deletion.windows, deletion.items, deletion.kept) == (2, 2, 1)
    assert f"{foreign.uri} was not made by the platform" in deletion.remark
    names = {child.name: [f.name for f in child.children()] for child in files.windows.children()}
    assert names == {foreign.name: ["thesis.txt"], WINDOW.folder: [MARKER, "drift_report.html"]}


def test_runs_on_other_machines_see_where_the_windows_begin(files: PlatformFiles) -> None:
    assert first_window(files.first_window, NOW) == Window.from_key("2025-01-01-00:00")
    old = Window.from_key("2024-03-01-07:00")
    begin_with(old, files.first_window, NOW)
    begin_with(WINDOW, files.first_window, NOW)
    assert first_window(files.first_window, NOW) == old


def test_ground_truth_of_several_runs_is_read_together(files: PlatformFiles) -> None:
    for run in ("a", "b"):
        with GroundTruthLog(files.ground_truth(run)) as log:
            log.append({f"{run}-{n}": "Adelie" for n in range(3)})
    assert len(read_ground_truth(files.ground_truths)) == 6


def test_report_pages_are_served_from_a_bucket(files: PlatformFiles) -> None:
    page = files.new_in_window(WINDOW, "drift_report.html")
    page.write(b"<!doctype html>")
    pages = ReportPages(files.top)
    assert pages._page(f"/windows/{WINDOW.folder}/drift_report.html") == b"<!doctype html>"
    for path in ("/windows/none.html", f"/windows/{WINDOW.folder}/{MARKER}", "/../x.html"):
        assert pages._page(path) is None


@pytest.mark.slow
def test_the_chain_runs_with_its_files_in_a_bucket(
    s3: str, untouched: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(untouched, tmp_path / "home")
    with platform_at(home, MLSCHOOL_FILES=f"{s3}/files") as platform:
        files = platform_files(platform.settings)

        def run(job: str, **config: Any) -> dg.ExecuteInProcessResult:
            # As if each run was on a machine of its own.
            for cache in ("cache", "versions"):
                shutil.rmtree(home / cache, ignore_errors=True)
            result = platform.run(job, config, window=PAST if job == "monitoring_job" else None)
            assert result.success
            return result

        registered = metadata(run("training_job"), "registered_version")
        published = files.location(registered["published"])
        tags = platform.registry().resolve("1").tags
        assert tags["published"] == published.uri
        assert published.uri.startswith(f"{s3}/files/versions/penguins/1-")
        digests = json.loads((published / MANIFEST).read())["sha256"]
        names = {place.name for place in published.children()}
        assert names == {*digests, MANIFEST} >= {"spec.json", "compiled.npz"}
        for name, digest in digests.items():
            assert hashlib.sha256((published / name).read()).hexdigest() == digest

        platform.registry().promote("1")
        captures = traffic(platform.registry().reference("1"), 200, PAST)
        with platform.store() as store:
            store.append(captures)
            store.append_labels(truth(captures))
        report = metadata(run("monitoring_job"), "drift_report")
        assert report["report"] == f"{s3}/files/windows/{PAST.folder}/drift_report.html"
        assert files.location(report["report"]).read().lstrip().startswith(b"<!DOCTYPE html>")
        page = metadata(run("dashboard_job"), "dashboard")["page"]
        assert files.location(page).read().lstrip().lower().startswith(b"<!doctype html>")
        compared = run("retraining_job", training_data={"captures": "labelled"})
        assert metadata(compared, "challenger_comparison")["held_out_rows"] > 0
        batch = run("batch_job")
        assert metadata(batch, "batch_predictions")["predictions"] == (
            f"{s3}/files/batch_predictions/{batch.run_id}/predictions.parquet"
        )
        assert not (home / "files").exists()
