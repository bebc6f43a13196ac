"""Importing by asset and sensor: what others left is monitored like what the endpoint captured."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from mlschool_dagster.capture.records import Label
from mlschool_dagster.capture.sources import Refusal
from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment.ledger import DeploymentEntry, DeploymentEvent, open_ledger
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster_tests.capture.places import JsonLinesPlace, line
from mlschool_dagster_tests.capture.samples import capture
from mlschool_dagster_tests.platform import (
    SPEC,
    WINDOW,
    Platform,
    checks,
    metadata,
    platform_at,
    sentence,
)

NAME = f"{WINDOW.start:%Y/%m/%d/%H}/1.jsonl"
RECENT = [replace(capture(each), captured_at=WINDOW.start) for each in ("a", "b", "c")]


@pytest.fixture
def place(tmp_path: Path) -> JsonLinesPlace:
    return JsonLinesPlace(str(tmp_path / "objects"))


@pytest.fixture
def importing(untouched: Path, tmp_path: Path, place: JsonLinesPlace) -> Iterator[Platform]:
    """A platform with a capture source and, elsewhere, one of labels."""
    home = shutil.copytree(untouched, tmp_path / "home")
    labels = str(tmp_path / "labels")
    with platform_at(
        home, MLSCHOOL_CAPTURE_SOURCE=place.uri, MLSCHOOL_LABEL_SOURCE=labels
    ) as platform:
        yield platform


def tick(platform: Platform, name: str = "capture_import_sensor") -> dg.SensorResult:
    """One tick of a sensor of the platform."""
    sensor = platform.definitions.resolve_sensor_def(name)
    resources = platform.definitions.resources or {}
    with dg.build_sensor_context(instance=platform.instance, resources=resources) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_what_arrives_is_imported_and_touches_its_window(
    importing: Platform, place: JsonLinesPlace, tmp_path: Path
) -> None:
    place.write(NAME, [*RECENT[:2], None, Refusal(WINDOW.start, "malformed")])
    JsonLinesPlace(str(tmp_path / "labels")).write(
        "truth.jsonl", [Label("a", "Gentoo", utc_now(), "vet")]
    )
    assert tick(importing).run_requests
    result = importing.run("capture_import_job")
    assert result.success
    figures = metadata(result, "capture_import")
    assert (figures["objects"], figures["rows"], figures["faults"]) == (2, 3, 1)
    assert figures["longest_lag_seconds"] > 0
    (fault,) = figures["unreadable"].records
    assert (fault.data["object"], fault.data["line"]) == (NAME, 3)
    check = checks(result)["lines_are_readable"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    with importing.store() as store:
        assert store.windows() == {WINDOW: 2}
        assert store.refusals(WINDOW) == {"malformed": 1}
        assert list(store.read_labels(WINDOW)["event_id"]) == ["a"]
    (request,) = tick(importing, "new_captures_sensor").run_requests or ()
    assert request.tags["dagster/partition"] == WINDOW.key


def test_an_import_is_asked_for_when_something_is_new_and_none_is_under_way(
    importing: Platform, place: JsonLinesPlace
) -> None:
    assert tick(importing).skip_reason is not None
    place.write(NAME, RECENT[:1])
    assert tick(importing).run_requests
    job = importing.definitions.resolve_job_def("capture_import_job")
    run = importing.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    skipped = tick(importing)
    assert not skipped.run_requests
    assert skipped.skip_reason == dg.SkipReason("An import is under way.")
    importing.instance.report_run_canceled(run)
    assert importing.run("capture_import_job").success
    assert tick(importing).skip_reason == dg.SkipReason("Nothing new has arrived.")
    place.extend(NAME, RECENT[1:2])
    assert tick(importing).run_requests


def test_the_ledger_knows_the_version_of_captures_that_name_none(
    importing: Platform, place: JsonLinesPlace
) -> None:
    unnamed = line(RECENT[0]).replace(b'"model_version":"3",', b"")
    place.put(NAME, unnamed + b"\n")
    result = importing.run("capture_import_job")
    (fault,) = metadata(result, "capture_import")["unreadable"].records
    assert "model_version" in fault.data["reason"]
    ledger = open_ledger(importing.settings.history, SPEC.name)
    ledger.append(DeploymentEntry(DeploymentEvent.SERVING, Plan(primary="7"), at=WINDOW.start))
    ledger.append(DeploymentEntry(DeploymentEvent.SERVING, Plan(primary="8"), at=WINDOW.end))
    ledger.close()
    place.put("again.jsonl", unnamed + b"\n")
    assert importing.run("capture_import_job").success
    with importing.store() as store:
        assert list(store.read(WINDOW)["model_version"]) == ["7"]


def test_without_a_source_nothing_is_asked_for(platform: Platform) -> None:
    sensor = platform.definitions.resolve_sensor_def("capture_import_sensor")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert "MLSCHOOL_CAPTURE_SOURCE" in str(tick(platform).skip_reason)
    assert "MLSCHOOL_CAPTURE_SOURCE" in sentence(platform.run("capture_import_job"))


def test_a_scheme_that_nothing_knows_is_refused(untouched: Path, tmp_path: Path) -> None:
    home = shutil.copytree(untouched, tmp_path / "home")
    with platform_at(home, MLSCHOOL_CAPTURE_SOURCE="gopher://host/place") as platform:
        message = sentence(platform.run("capture_import_job"))
    assert "MLSCHOOL_CAPTURE_SOURCE has the scheme 'gopher'" in message
