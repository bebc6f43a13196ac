"""Which package may depend on which, and what loading the definitions may import."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlschool_dagster
from mlschool_dagster import dagster_internals
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
    "storage",
}
INTERNALS = "dagster_internals"
BELOW = {"capture", "modeling", "dataset"}
MIDDLE = {"deployment", "serving", "monitoring", "promotion", "alerting", "simulation"}
ALLOWED: dict[str, set[str]] = {
    "dataset": set(),
    "capture": {"dataset"},
    "modeling": {"dataset"},
    "serving": BELOW | {"settings"},
    "monitoring": BELOW,
    "promotion": BELOW | {"monitoring"},
    "alerting": set(),
    "simulation": BELOW,
    "deployment": BELOW | {"serving"},
    "resources": BELOW | MIDDLE | {INTERNALS, "settings"},
    "defs": BELOW | MIDDLE | {"resources", INTERNALS},
    "definitions": BELOW | MIDDLE | {"resources", "defs", "settings"},
    "settings": set(),
}
WITHOUT_DAGSTER = BELOW | MIDDLE | FOR_ALL | {"settings"}
HEAVY = {
    "azure", "boto3", "dagster_mlflow", "duckdb", "evidently", "jax", "keras", "matplotlib",
    "mlflow", "pandas", "pandera", "plotly", "sagemaker", "scipy", "skops", "sklearn", "numpy",
    "httpx", "sqlalchemy",
}  # fmt: skip
PRIVATE_WORDS = {
    "trouble", "ailing", "episode", "diary", "corked", "tally", "probation", "told", "news",
    "standing",
}  # fmt: skip
"""Words for which the field has a standard term: incident, rollout, soak, message, ..."""


TESTS = Path(__file__).parent


def package(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The modules that are imported anywhere in the file."""
    yield from _imported(ast.walk(parsed(path)))


def imports_at_load(path: Path) -> Iterator[str]:
    """The modules that are imported when the file is, and names that may be modules."""
    yield from _imported(executed_at_load(parsed(path).body))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def executed_at_load(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from executed_at_load(node.orelse)
            continue
        yield node
        yield from executed_at_load(ast.iter_child_nodes(node))


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {module(path): path for path in MODULES}


def area(name: str) -> str:
    """The package of a module; within ``defs``, the area or the module beside the areas."""
    parts = name.split(".")
    return ".".join(parts[1:3] if parts[1:2] == ["defs"] else parts[1:2])


def graph(
    imported: Callable[[Path], Iterator[str]], node: Callable[[str], str]
) -> dict[str, set[str]]:
    """What each node imports of the platform; a module of a package imports that as well."""
    edges: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        used = {node(other) for other in imported(path) if other in NAMES}
        edges.setdefault(node(name), set()).update(used - {node(name)})
    return edges


def test_no_module_imports_itself_by_others() -> None:
    edges = graph(imports_at_load, lambda name: name)
    # A package is executed before each of its modules, and imports them itself.
    for name, used in edges.items():
        packages = {other for other in used if NAMES[other].name == "__init__.py"}
        used -= {other for other in packages if name.startswith(other)}
    TopologicalSorter(edges).prepare()


def test_no_package_and_no_area_imports_itself_by_others() -> None:
    edges = graph(imports, area)
    # `local` stands outside: nothing imports it but for the state of a running platform.
    edges.pop("local")
    edges.pop("")
    TopologicalSorter(edges).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_module_alone_imports_what_is_private_to_dagster(path: Path) -> None:
    if package(path) != INTERNALS:
        assert not [
            name
            for name in imports(path)
            if name.startswith(("dagster._", "dagster_"))
            and not name.startswith(("dagster_mlflow", "dagster_aws", "dagster_postgres"))
        ]


def test_every_private_name_of_dagster_is_there_and_has_a_reason_and_a_test() -> None:
    annotated = {
        alias.asname
        for node in ast.walk(parsed(NAMES[f"mlschool_dagster.{INTERNALS}"]))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dagster")
        for alias in node.names
    }
    assert annotated == set(dagster_internals.PRIVATE)
    for name, (_, reason, test) in dagster_internals.PRIVATE.items():
        assert getattr(dagster_internals, name)
        assert reason
        assert (TESTS / test).is_file(), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    here = package(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("mlschool_dagster.")}
    if here in ALLOWED:
        assert used - FOR_ALL - {here} <= ALLOWED[here]
    elif here in FOR_ALL:
        assert used <= FOR_ALL


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_lower_packages_import_no_dagster(path: Path) -> None:
    if package(path) in WITHOUT_DAGSTER:
        assert not [name for name in imports(path) if name.split(".")[0].startswith("dagster")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_spec_knows_the_data(path: Path) -> None:
    spec = load_spec(Settings.from_environment({}).spec)
    words = {*spec.input_names, *spec.target.classes, "penguin"} - {"sex"}
    if path.name != "settings.py":
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in words if word.lower() in text]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_modeling_imports_keras(path: Path) -> None:
    if package(path) != "modeling":
        assert not [name for name in imports(path) if name.split(".")[0] in {"keras", "jax"}]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def defined_names(path: Path) -> Iterator[str]:
    """The names of functions, classes, parameters, variables and fields that the file defines."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words(name: str) -> set[str]:
    """The words of a name in snake or camel case, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_names_are_split_into_words() -> None:
    assert words("_HTTPServer_of_aTroubleBook2") == {"http", "server", "of", "a", "trouble", "book"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_use_standard_words(path: Path) -> None:
    assert not [name for name in defined_names(path) if words(name) & PRIVATE_WORDS]


def test_every_package_says_what_belongs_in_it() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    code = "import sys, mlschool_dagster.definitions; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}
