"""The rules of the house: which room may depend on which, and what loading may cost."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlschool_dagster
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.settings import Settings

PACKAGE = Path(mlschool_dagster.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

FOR_ALL = {
    "credentials",
    "errors",
    "atomic",
    "clock",
    "database",
    "garbage",
    "identity",
    "owned",
    "postgres",
}
BELOW = {"capture", "modeling", "dataset"}
MIDDLE = {"deployment", "serving", "monitoring", "promotion", "alerting", "simulation"}
ALLOWED: dict[str, set[str]] = {
    "dataset": set(),
    "capture": {"dataset"},
    "modeling": {"dataset"},
    "serving": BELOW,
    "monitoring": BELOW,
    "promotion": BELOW | {"monitoring"},
    "alerting": set(),
    "simulation": BELOW,
    "deployment": BELOW | {"serving"},
    "resources": BELOW | MIDDLE,
    "defs": BELOW | MIDDLE | {"resources"},
    "definitions": BELOW | MIDDLE | {"resources", "defs", "settings"},
    "settings": set(),
}
WITHOUT_DAGSTER = BELOW | MIDDLE | FOR_ALL | {"settings"}
HEAVY = {
    "azure", "boto3", "dagster_mlflow", "duckdb", "evidently", "jax", "keras", "matplotlib",
    "mlflow", "pandas", "pandera", "plotly", "sagemaker", "scipy", "skops", "sklearn", "numpy",
    "httpx",
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    here = room(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("mlschool_dagster.")}
    if here in ALLOWED:
        assert used - FOR_ALL - {here} <= ALLOWED[here]
    elif here in FOR_ALL:
        assert used <= FOR_ALL


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_lower_rooms_know_no_dagster(path: Path) -> None:
    if room(path) in WITHOUT_DAGSTER:
        assert not [name for name in imports(path) if name.split(".")[0].startswith("dagster")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_spec_knows_the_data(path: Path) -> None:
    spec = load_spec(Settings.from_environment({}).spec)
    words = {*spec.input_names, *spec.target.classes, "penguin"} - {"sex"}
    if path.name != "settings.py":
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in words if word.lower() in text]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_keras_stays_in_its_room(path: Path) -> None:
    if room(path) != "modeling":
        assert not [name for name in imports(path) if name.split(".")[0] in {"keras", "jax"}]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_every_package_says_what_belongs_in_it() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    code = "import sys, mlschool_dagster.definitions; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}
