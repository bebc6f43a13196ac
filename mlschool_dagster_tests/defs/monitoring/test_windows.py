"""Windows: frozen, labelled and reported on, however little has landed in them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.common import UNDECIDED
from mlschool_dagster.defs.keys import REPORTS
from mlschool_dagster.defs.monitoring.arrival_sensors import MONITORED, NEW_LABELS
from mlschool_dagster.resources.tracking import MlflowTracking
from mlschool_dagster_tests.capture.samples import capture
from mlschool_dagster_tests.platform import (
    LATER,
    WINDOW,
    Platform,
    checks,
    materialized,
    metadata,
    sentence,
    traffic,
    truth,
)
from mlschool_dagster_tests.serving.server import free_port


@pytest.fixture
def serving(trained_platform: Platform) -> Platform:
    """A platform whose version 1 is the champion, as if it served."""
    trained_platform.registry().promote("1")
    return trained_platform


def land(
    platform: Platform, rows: int, labelled: int = 0, window: Window = WINDOW
) -> Sequence[Capture]:
    """Captures of version 1 in `window`, the first of them `labelled`, and half of those wrong."""
    captures = traffic(platform.registry().reference("1"), rows, window)
    with platform.store() as store:
        store.append(captures)
        store.append_labels(truth(captures[: labelled // 2]))
        store.append_labels(truth(captures[labelled // 2 : labelled], right=False))
    return captures


def monitor(platform: Platform, config: Any = None, window: Window = WINDOW) -> dict[str, Any]:
    """Monitor `window` and return the reports' metadata by report."""
    result = platform.run("monitoring_job", config or {}, window)
    assert result.success
    assert materialized(result) == {key.to_user_string() for key in MONITORED}
    return {report.to_user_string(): metadata(result, report) for report in REPORTS}


def frozen(platform: Platform, name: str) -> pd.DataFrame:
    (path,) = (platform.files / "windows").glob(f"*/{name}.parquet")
    return pd.read_parquet(path)


@pytest.mark.parametrize(
    ("rows", "labelled"), [(0, 0), (1, 0), pytest.param(60, 0, marks=pytest.mark.slow), (60, 20)]
)
def test_every_report_is_made_and_says_what_it_is_about(
    serving: Platform, rows: int, labelled: int
) -> None:
    land(serving, rows, labelled)
    reports = monitor(serving)
    for name, report in reports.items():
        assert (report["window"], report["model_version"]) == (WINDOW.key, "1")
        assert report["reference"] == "training data of version 1 with out-of-fold predictions"
        assert (report["rows"], report["reference_rows"]) == (rows, 344)
        page = Path(report["report"])
        assert page.name == f"{name}.html"
        assert WINDOW.key in page.read_text(encoding="utf-8")
    # Values that are missing in the reference are missing in the traffic drawn from it.
    counted = [row.data["n_current"] for row in reports["drift_report"]["tests"].records]
    assert max(counted) == rows
    performance = reports["performance_report"]
    assert performance["labelled"] == labelled
    assert performance["label_coverage"] == (labelled / rows if rows else 0)
    assert performance.get("measured_accuracy") == (0.5 if labelled else None)
    assert len(frozen(serving, "captured_traffic")) == rows
    assert len(frozen(serving, "labels")) == labelled


def test_nothing_that_clients_send_fails_a_report_or_counts_as_a_mistake(
    serving: Platform,
) -> None:
    captures = [
        replace(capture, inputs={**capture.inputs, "island": "$10_to_$20", "body_mass_g": 39.1})
        for capture in traffic(serving.registry().reference("1"), 60)
    ]
    with serving.store() as store:
        store.append(captures)
        store.append_labels(
            [replace(label, label=label.label.lower()) for label in truth(captures)]
        )
    result = serving.run("monitoring_job", window=WINDOW)
    assert result.success
    for report in REPORTS:
        shown = metadata(result, report)
        assert "not_drawn" not in shown
        assert Path(shown["report"]).exists()
        assert not [value for value in shown.values() if "could not be drawn" in str(value)]
    found = checks(result)
    assert found["accuracy"].passed
    assert UNDECIDED in found["accuracy"].metadata
    assert not found["known_labels"].passed
    assert "'adelie'" in str(found["known_labels"].description)
    assert metadata(result, "labels")["unknown_labels"] == 60


def test_a_page_that_cannot_be_written_is_named_and_nothing_else_is_lost(
    serving: Platform,
) -> None:
    land(serving, 40)
    (serving.files / "windows" / WINDOW.folder / "drift_report.html").mkdir(parents=True)
    reports = monitor(serving)
    assert "The page drift_report.html could not be drawn" in reports["drift_report"]["report"]
    assert reports["drift_report"]["verdict"] == "no drift found"


@pytest.mark.slow
def test_samples_bound_what_is_drawn_never_what_is_counted(serving: Platform) -> None:
    land(serving, 60, labelled=40)
    whole = monitor(serving)
    sampled = monitor(serving, {name: {"samples": 5} for name in whole})
    for name in whole:
        assert numbers(sampled[name]) == numbers(whole[name])


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if isinstance(v, int | float | dg.TableMetadataValue)}


@pytest.mark.slow
def test_a_window_again_takes_the_place_of_what_was_known_before(serving: Platform) -> None:
    earlier = land(serving, 40)
    monitor(serving)
    with serving.store() as store:
        store.append(traffic(serving.registry().reference("1"), 2, start=40))
        store.append_labels(truth(earlier))
    performance = monitor(serving)["performance_report"]
    assert (performance["rows"], performance["labelled"]) == (42, 40)
    assert frozen(serving, "captured_traffic")["event_id"].is_unique


def test_drift_and_degradation_are_reported_by_checks_that_name_the_columns(
    serving: Platform,
) -> None:
    captures = [
        replace(capture, inputs={**capture.inputs, "body_mass_g": 9000.0})
        for capture in traffic(serving.registry().reference("1"), 60)
    ]
    with serving.store() as store:
        store.append(captures)
        store.append_labels(truth(captures, right=False))
    result = serving.run("monitoring_job", window=WINDOW)
    assert result.success
    results = checks(result)
    for name, column in {"no_drift": "body_mass_g", "data_quality": "body_mass_g"}.items():
        assert not results[name].passed
        assert column in str(results[name].description)
    assert results["no_drift"].severity is dg.AssetCheckSeverity.WARN
    assert not results["accuracy"].passed
    assert "body_mass_g" in metadata(result, "drift_report")["drifted_columns"]


def test_what_was_refused_is_reported_by_reason_beside_what_was_captured(serving: Platform) -> None:
    land(serving, 40)
    with serving.store() as store:
        store.count_refusals(WINDOW, {"malformed": 4, "sex: is no string": 16})
    result = serving.run(
        "monitoring_job", window=WINDOW, assets=["captured_traffic", "data_quality_report"]
    )
    assert result.success
    report = metadata(result, "data_quality_report")
    assert (report["refused"], report["refused_share"]) == (20.0, 20 / 60)
    assert [row.data["reason"] for row in report["refusals"].records] == [
        "sex: is no string",
        "malformed",
    ]
    assert "sex: is no string (16)" in Path(report["report"]).read_text(encoding="utf-8")
    assert not checks(result)["data_quality"].passed
    assert "20 refusals beside 40 answered rows" in str(checks(result)["data_quality"].description)


def test_what_a_deployed_version_answered_is_reported_on_while_mlflow_is_away(
    serving: Platform,
) -> None:
    land(serving, 40)
    serving.registry().fetch("1", serving.settings.home / "versions")
    away = MlflowTracking(
        tracking_uri=f"http://127.0.0.1:{free_port()}", experiment="away", artifacts=""
    )
    platform = replace(serving, definitions=build_definitions(mlflow=away))
    assets = ["captured_traffic", "labels", "data_quality_report", "performance_report"]
    assert platform.run("monitoring_job", window=WINDOW, assets=assets).success


def test_without_a_window_the_newest_one_is_named(serving: Platform) -> None:
    land(serving, 1)
    land(serving, 1, window=LATER)
    result = serving.run("monitoring_job", assets=["captured_traffic"])
    assert LATER.key in sentence(result)
    assert WINDOW.key not in sentence(result)
    assert "dagster/partition" in sentence(result)


def test_a_report_of_a_window_that_was_not_frozen_says_so(serving: Platform) -> None:
    result = serving.run("monitoring_job", window=WINDOW, assets=["drift_report"])
    assert sentence(result) == (
        f"captured_traffic of window {WINDOW.key} is missing; materialize it first."
    )


@pytest.mark.slow
def test_the_coverage_check_names_the_windows_that_a_report_lacks(serving: Platform) -> None:
    land(serving, 1)
    land(serving, 1, window=LATER)
    assert uncovered(serving) == {WINDOW.key, LATER.key}
    monitor(serving)
    assert uncovered(serving) == {LATER.key}
    serving.run("monitoring_job", window=LATER, assets=NEW_LABELS.selection)
    assert uncovered(serving) == {LATER.key}
    monitor(serving, window=LATER)
    assert uncovered(serving) == set()
    with serving.store() as store:
        store.append(traffic(serving.registry().reference("1"), 1, start=1))
    assert uncovered(serving) == {WINDOW.key}


def test_captures_that_may_still_be_on_their_way_into_reports_are_no_trouble(
    serving: Platform, clock_offset: Path
) -> None:
    land(serving, 1)
    for minutes, is_undecided in ((5, True), (15, False)):
        moment = WINDOW.end + timedelta(minutes=minutes)
        clock_offset.write_text(str((moment - datetime.now(UTC)).total_seconds()))
        check = coverage(serving)
        assert check.passed == is_undecided
        assert (UNDECIDED in check.metadata) == is_undecided


def test_captures_whose_run_is_under_way_are_no_trouble(platform: Platform) -> None:
    with platform.store() as store:
        store.append([replace(capture("one"), captured_at=WINDOW.start)])
    assert not coverage(platform).passed
    job = platform.definitions.resolve_job_def("monitoring_job")
    run = platform.instance.create_run_for_job(
        job, tags={"dagster/partition": WINDOW.key}, status=dg.DagsterRunStatus.STARTED
    )
    check = coverage(platform)
    assert check.passed
    assert UNDECIDED in check.metadata
    assert WINDOW.key in str(check.description)
    platform.instance.report_run_failed(run)
    assert not coverage(platform).passed


def uncovered(platform: Platform) -> set[str]:
    """The windows that the check ``coverage`` names."""
    check = coverage(platform)
    description = str(check.description)
    windows = {window.key for window in (WINDOW, LATER) if window.key in description}
    assert check.passed == (not windows)
    return windows


def coverage(platform: Platform) -> dg.AssetCheckEvaluation:
    """What the check ``coverage`` finds now."""
    job = platform.definitions.resolve_implicit_global_asset_job_def()
    selected = job.get_subset(
        asset_selection=set(),
        asset_check_selection={dg.AssetCheckKey(dg.AssetKey("captured_traffic"), "coverage")},
    )
    result = selected.execute_in_process(instance=platform.instance)
    (check,) = result.get_asset_check_evaluations()
    return check
