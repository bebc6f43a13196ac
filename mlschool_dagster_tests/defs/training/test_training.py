"""Training: what a version says of itself, and what keeps a bad one out of the registry."""

import subprocess
import sys
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from mlflow import MlflowClient

from mlschool_dagster.modeling.model_card import LONGEST
from mlschool_dagster_tests.platform import (
    SPEC,
    Platform,
    metadata,
    run_config,
    sentence,
)

OUT_OF_REACH = {"training": {"accuracy_threshold": 1.0}}


def last_metadata(platform: Platform, asset: str) -> dict[str, Any]:
    (record,) = platform.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def test_a_version_is_linked_to_its_run_asset_and_data(trained_platform: Platform) -> None:
    version = trained_platform.registry().resolve("challenger")
    run = trained_platform.instance.get_run_by_id(version.tags["dagster_run_id"])
    assert version.version == "1"
    assert run is not None
    assert run.job_name == "training_job"
    assert version.tags["dagster_asset"] == "registered_version"
    assert version.tags["git_commit"]
    raw = last_metadata(trained_platform, "raw_penguins")
    registered = last_metadata(trained_platform, "registered_version")
    assert version.tags["data_version"] == raw["digest"] == registered["data_version"]
    assert registered["mlflow_run_id"] == version.run_id
    assert registered["aliases"] == ["challenger"]


def test_a_version_carries_its_model_card(trained_platform: Platform) -> None:
    version = trained_platform.registry().resolve("challenger")
    registered = last_metadata(trained_platform, "registered_version")
    description = (
        MlflowClient(trained_platform.settings.tracking_uri)
        .get_model_version("penguins", version.version)
        .description
    )
    assert description == registered["model_card"]
    assert len(description) <= LONGEST
    run_id = version.tags["dagster_run_id"]
    accuracy = last_metadata(trained_platform, "cross_validation")["accuracy_mean"]
    for part in (
        f"Dagster run `{run_id}`",
        f"Accuracy {accuracy:.4f}",
        "| sex | FEMALE |",
        "## Lineage",
        "1000 to 10000 g, may be missing",
    ):
        assert part in description


def test_the_data_is_shown_as_numbers_tables_and_pictures(trained_platform: Platform) -> None:
    shown = last_metadata(trained_platform, "raw_penguins")
    assert shown["dagster/row_count"] == 344
    assert 0 < shown["missing_share"] < 0.02
    assert {row.data["class"]: row.data["rows"] for row in shown["classes"].records} == {
        "Adelie": 152,
        "Gentoo": 124,
        "Chinstrap": 68,
    }
    assert shown["preview"].records[0].data["body_mass_g"] == 3750
    assert is_picture(shown["class_balance"])
    assert is_picture(shown["distributions"])


def test_the_training_is_shown_as_numbers_tables_and_pictures(trained_platform: Platform) -> None:
    shown = last_metadata(trained_platform, "cross_validation")
    assert shown["accuracy_mean"] > 0.97
    assert isinstance(shown["accuracy_std"], float)
    assert len(shown["folds"].records) == 5
    assert {row.data["label"] for row in shown["classes"].records} == set(SPEC.target.classes)
    for name in ("fold_accuracies", "learning_curves", "confusion_matrix", "reliability"):
        assert is_picture(shown[name]), name
    model = last_metadata(trained_platform, "trained_model")
    assert model["config"]["epochs"] == 50
    assert model["parameters"] == 9 * 10 + 10 + 10 * 8 + 8 + 8 * 3 + 3
    assert model["mlflow_run_id"] == shown["mlflow_run_id"]


def is_picture(markdown: str) -> bool:
    return "](data:image/png;base64,iVBOR" in markdown


@pytest.mark.slow
def test_equal_seed_gives_an_equal_model_and_another_does_not(trained_platform: Platform) -> None:
    before = last_metadata(trained_platform, "trained_model")["training_loss"]
    assert training_loss(trained_platform, 42) == before
    assert training_loss(trained_platform, 43) != before


def training_loss(platform: Platform, seed: int) -> float:
    trained = ["cross_validation", "trained_model"]
    result = platform.run("training_job", {"training": {"seed": seed}}, assets=trained)
    return float(metadata(result, "trained_model")["training_loss"])


def test_a_setting_that_cannot_be_trained_with_is_reported_before_any_work(
    trained_platform: Platform,
) -> None:
    result = trained_platform.run("training_job", {"training": {"optimizer": "magic"}})
    assert "optimizer = 'magic'; use one of adam" in sentence(result)


def test_training_without_data_says_what_to_materialize(platform: Platform) -> None:
    result = platform.run("training_job", assets=["cross_validation", "trained_model"])
    assert sentence(result) == "training_data has not been materialized yet; materialize it first."


def test_accuracy_below_the_threshold_registers_nothing_and_ends_in_an_exit_code(
    trained_platform: Platform,
) -> None:
    config = trained_platform.home / "config.yaml"
    config.write_text(yaml.safe_dump(run_config(OUT_OF_REACH)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "job", "execute", "-j", "training_job"),
            *("-m", "mlschool_dagster.definitions", "-c", str(config)),
        ],
        env=trained_platform.subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "is below accuracy_threshold 1: no version is registered" in done.stderr
    assert "Stack Trace" not in done.stderr
    assert "Traceback" not in done.stderr
    (gate,) = trained_platform.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("cross_validation"), "accuracy_gate"), limit=1
    )
    assert gate.status is AssetCheckExecutionRecordStatus.FAILED
    later = trained_platform.run("training_job", assets=["registered_version"])
    assert "is below accuracy_threshold 1: no version is registered" in sentence(later)
    assert trained_platform.registry().resolve("challenger").version == "1"
