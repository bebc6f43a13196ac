import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import mlflow
import pandas as pd
import pytest

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.modeling.registry import Registry, fetched
from mlschool_dagster.modeling.version_folder import FILES
from mlschool_dagster_tests.modeling.logged import Logged


@pytest.fixture
def registry(logged: Logged, request: pytest.FixtureRequest) -> Registry:
    """A registered model without versions."""
    return Registry(logged.tracking_uri, request.node.name)


def register(registry: Registry, logged: Logged, run_id: str = "") -> str:
    tags = {"dagster_run_id": run_id or uuid4().hex}
    return registry.register(logged.model_uri, logged.run_id, tags)


def test_without_versions_the_user_learns_what_to_do(registry: Registry) -> None:
    with pytest.raises(UserError, match="none is registered yet: run the training job"):
        registry.resolve("champion")
    assert not registry.has_alias("champion")


def test_a_new_version_is_the_challenger(registry: Registry, logged: Logged) -> None:
    assert register(registry, logged) == "1"
    assert register(registry, logged, "abc") == "2"
    assert registry.aliases("1") == []
    result = registry.resolve("challenger")
    assert (result.version, result.run_id) == ("2", logged.run_id)
    assert result.tags["dagster_run_id"] == "abc"


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


def test_a_repeated_attempt_of_a_run_registers_no_second_version(
    registry: Registry, logged: Logged
) -> None:
    assert [register(registry, logged, run_id) for run_id in ("a", "a", "b")] == ["1", "1", "2"]


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
    registry.tag("1", {"name": "value"})
    assert registry.fetch("1", tmp_path).stat().st_ino == before


def test_what_was_fetched_is_found_without_the_registry(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    assert fetched(registry.model_name, "1", tmp_path) is None
    folder = registry.fetch("1", tmp_path)
    assert fetched(registry.model_name, "1", tmp_path) == folder
    assert fetched("another", "1", tmp_path) is None


def test_what_came_from_another_registry_is_replaced(
    registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    CompiledModel.load(registry.fetch("1", tmp_path))
    other = Registry(logged.tracking_uri, "another")
    register(other, logged)
    assert '"name": "another"' in (other.fetch("1", tmp_path) / "origin.json").read_text()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_the_platform_did_not_make_is_never_replaced(
    kind: str, registry: Registry, logged: Logged, tmp_path: Path
) -> None:
    register(registry, logged)
    precious = tmp_path / "versions" / "1"
    precious.parent.mkdir()
    if kind == "file":
        precious.write_text("precious")
    else:
        place = precious if kind == "folder" else tmp_path / "elsewhere"
        place.mkdir()
        (place / "origin.json").write_text("{}")
        (place / "thesis.txt").write_text("precious")
        if kind == "link":
            precious.symlink_to(place)
    before = {path: path.is_dir() or path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="not made by the platform; move it elsewhere"):
        registry.fetch("1", precious.parent)
    assert {path: path.is_dir() or path.read_text() for path in before} == before


class LyingRegistry(BaseHTTPRequestHandler):
    """A registry of one version, called `version`, whose files are at `location`."""

    version = "1"
    location = ""

    def do_GET(self) -> None:
        version = {
            "name": "penguins",
            "version": self.version,
            "run_id": "r",
            "source": "models:/m",
        }
        model = {"name": "penguins", "aliases": [{"alias": "champion", "version": self.version}]}
        answers = {
            "registered-models/search": {"registered_models": [model]},
            "registered-models/get": {"registered_model": model},
            "model-versions/search": {"model_versions": [version]},
            "model-versions/get-download-uri": {"artifact_uri": self.location},
        }
        [answer] = [a for path, a in answers.items() if path in self.path]
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def lying() -> Iterator[tuple[Registry, type[LyingRegistry]]]:
    handler = type("Handler", (LyingRegistry,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Registry(f"http://127.0.0.1:{server.server_port}", "penguins"), handler
        server.shutdown()


@pytest.mark.parametrize("version", ["../../precious", "..", "0", "-1", "01", "1/2", "\u0661", ""])
def test_a_version_is_a_number_whatever_the_registry_says(
    version: str, lying: tuple[Registry, type[LyingRegistry]], tmp_path: Path
) -> None:
    registry, handler = lying
    handler.version = version
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    for asked in ("champion", version):
        with pytest.raises(UserError, match="has no version"):
            registry.fetch(asked, tmp_path / "home" / "versions")
        assert fetched("penguins", version, tmp_path / "home" / "versions") is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["file://{}", "{}", "FILE:{}"])
def test_a_remote_registry_gives_no_files_of_this_machine(
    form: str, lying: tuple[Registry, type[LyingRegistry]], tmp_path: Path
) -> None:
    registry, handler = lying
    secrets = tmp_path / "artifacts" / "version"
    secrets.mkdir(parents=True)
    for name in FILES:
        (secrets / name).write_text("secret")
    handler.location = form.format(tmp_path)
    with pytest.raises(UserError, match="in a folder of this machine"):
        registry.fetch("champion", tmp_path / "versions")
    with pytest.raises(UserError, match="in a folder of this machine"):
        registry.reference("1")
    assert not (tmp_path / "versions" / "1").exists()
    # The platform's own server names files in the platform's own folder.
    elsewhere = Registry(registry.tracking_uri, "penguins", tmp_path / "another")
    with pytest.raises(UserError, match="in a folder of this machine"):
        elsewhere.fetch("1", tmp_path / "versions")
    handler.location = tmp_path.as_uri()
    own = Registry(registry.tracking_uri, "penguins", tmp_path)
    assert own.fetch("1", tmp_path / "versions") == tmp_path / "versions" / "1"


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
