"""What is declared: everything says what it is, and what the documentation shows can be run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.settings import ROOT

DEFINITIONS = build_definitions()
CONFIGURED_JOBS = [
    "approval_job",
    "training_job",
    "retraining_job",
    "deployment_job",
    "rollback_job",
    "health_job",
    "batch_job",
    "teardown_job",
    "traffic_job",
    "labeling_job",
    "monitoring_job",
    "retention_job",
    "volume_job",
]
JOBS = [
    *CONFIGURED_JOBS,
    "preflight_job",
    "canary_evidence_job",
    "promotion_ledger_job",
    "dashboard_job",
]
SENSORS = [
    "new_captures_sensor",
    "new_labels_sensor",
    "retraining_sensor",
    "promotion_sensor",
    "failure_sensor",
    "automation_sensor",
    "traffic_volume_sensor",
]
SCHEDULES = {
    "nightly_retraining": dg.DefaultScheduleStatus.STOPPED,
    "weekly_retention": dg.DefaultScheduleStatus.STOPPED,
    "endpoint_health_schedule": dg.DefaultScheduleStatus.RUNNING,
}
DOCUMENTED = sorted((ROOT / "docs" / "run_config").glob("*.yaml"))


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: path.stem)
def test_a_documented_run_config_is_one_of_its_job(path: Path) -> None:
    job = DEFINITIONS.resolve_job_def(path.stem)
    assert dg.validate_run_config(job, yaml.safe_load(path.read_text(encoding="utf-8")))


def test_every_job_with_settings_has_a_documented_run_config() -> None:
    assert sorted(CONFIGURED_JOBS) == [path.stem for path in DOCUMENTED]


def test_every_job_says_what_it_is_and_has_a_stage() -> None:
    for name in JOBS:
        job = DEFINITIONS.resolve_job_def(name)
        assert job.description, name
        assert job.tags["stage"], name


def test_every_asset_and_check_says_what_it_is() -> None:
    graph = DEFINITIONS.resolve_asset_graph()
    for spec in DEFINITIONS.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.group_name, spec.key
        assert spec.owners, spec.key
        assert spec.kinds, spec.key
        assert spec.code_version or spec.key == dg.AssetKey("live_traffic"), spec.key
    keys = graph.asset_check_keys
    assert keys
    for key in keys:
        assert graph.get_check_spec(key).description, key


def test_what_watches_runs_and_what_destroys_or_trains_by_the_clock_waits() -> None:
    for name in SENSORS:
        sensor = DEFINITIONS.resolve_sensor_def(name)
        assert sensor.description, name
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    for name, status in SCHEDULES.items():
        schedule = DEFINITIONS.resolve_schedule_def(name)
        assert schedule.description, name
        assert schedule.default_status is status


@pytest.mark.parametrize("name", CONFIGURED_JOBS)
def test_every_setting_of_a_job_says_what_it_means(name: str) -> None:
    job = DEFINITIONS.resolve_job_def(name)
    settings = [
        (f"{node.name}.{field}", declared.description)
        for node in job.graph.nodes
        for field, declared in _fields(node.definition.config_field)
    ]
    assert settings
    assert not [field for field, description in settings if not description]


def test_every_setting_of_a_resource_says_what_it_means() -> None:
    for name, resource in (DEFINITIONS.resources or {}).items():
        for field, declared in type(resource).model_fields.items():
            assert declared.description, f"{name}.{field}"


def _fields(field: Any) -> Iterator[tuple[str, Any]]:
    if field is not None and field.config_type is not None:
        yield from getattr(field.config_type, "fields", {}).items()
