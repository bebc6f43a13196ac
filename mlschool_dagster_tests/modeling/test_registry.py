from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.modeling.registry import Registry, fetched
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster_tests.modeling.logged import Logged


@pytest.fixture
def registry(logged: Logged, request: pytest.FixtureRequest) -> Registry:
    """A registered model without versions."""
    return Registry(logged.tracking_uri, request.node.name)


def register(registry: Registry, logged: Logged) -> str:
    return registry.register(logged.model_uri, logged.run_id, {"dagster_run_id": "abc"})


def test_without_versions_the_user_learns_what_to_do(registry: Registry) -> None:
    with pytest.raises(UserError, match="none is registered yet: run the training job"):
        registry.resolve("champion")
    assert not registry.has_alias("champion")


def test_a_new_version_is_the_challenger(registry: Registry, logged: Logged) -> None:
    assert register(registry, logged) == "1"
    assert register(registry, logged) == "2"
    assert registry.aliases("1") == []
    found = registry.resolve("challenger")
    assert (found.version, found.run_id) == ("2", logged.run_id)
    assert found.tags["dagster_run_id"] == "abc"


def test_the_champion_is_no_longer_the_challenger(registry: Registry, logged: Logged) -> None:
    register(registry, logged)
    registry.promote("challenger")
    assert registry.aliases("1") == ["champion"]
    register(registry, logged)
    registry.promote("2")
    assert registry.resolve("champion").version == "2"
    assert registry.aliases("1") == []
    register(registry, logged)
    registry.promote("1")
    assert registry.aliases("3") == ["challenger"]


def test_an_unknown_version_is_refused_with_the_known_ones(
    registry: Registry, logged: Logged
) -> None:
    register(registry, logged)
    with pytest.raises(UserError, match=r"'7'; choose among 1, challenger \(version 1\)"):
        registry.resolve("7")


def test_a_fetched_version_predicts(
    registry: Registry, logged: Logged, spec: DataSpec, tmp_path: Path
) -> None:
    register(registry, logged)
    folder = registry.fetch("challenger", tmp_path / "versions")
    assert folder == tmp_path / "versions" / "1"
    assert CompiledModel.load(folder).spec == spec
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_complete_version_is_fetched_once(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    before = registry.fetch("1", tmp_path).stat().st_ino
    assert registry.fetch("1", tmp_path).stat().st_ino == before


def test_what_was_fetched_is_found_without_the_registry(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    assert fetched(registry.model_name, "1", tmp_path) is None
    folder = registry.fetch("1", tmp_path)
    assert fetched(registry.model_name, "1", tmp_path) == folder
    assert fetched("another", "1", tmp_path) is None


def test_what_is_left_of_a_broken_fetch_or_of_another_registry_is_replaced(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "compiled.npz").write_bytes(b"half")
    CompiledModel.load(registry.fetch("1", tmp_path))
    other = Registry(logged.tracking_uri, "another")
    register(other, logged)
    assert '"name": "another"' in (other.fetch("1", tmp_path) / "origin.json").read_text()


def test_a_version_can_be_fetched_by_several_at_once(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: registry.fetch("1", tmp_path), range(8)))
    assert folders == {tmp_path / "1"}
    CompiledModel.load(tmp_path / "1")


def test_the_reference_is_what_the_version_was_trained_on(
    registry: Registry, logged: Logged, penguins: pd.DataFrame
) -> None:
    register(registry, logged)
    reference = registry.reference("challenger")
    assert len(reference) == 344
    assert reference["species"].tolist() == penguins["species"].tolist()
    assert {"prediction", "confidence", "probability_Gentoo"} <= set(reference.columns)


def test_the_global_tracking_uri_is_left_alone(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    mlflow.set_tracking_uri(elsewhere)
    register(registry, logged)
    registry.fetch("1", tmp_path)
    assert mlflow.get_tracking_uri() == elsewhere
    mlflow.set_tracking_uri(logged.tracking_uri)
