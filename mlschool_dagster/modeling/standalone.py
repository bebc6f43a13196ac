"""Copies of modules that work where the package is not installed, or another release of it.

A version in MLflow must keep predicting as it did, whatever the package has become since. So it
carries the modules that it needs, with all that they import of the package, as one flat package
whose imports are relative.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

PACKAGE = __name__.partition(".")[0]


def copy_modules(roots: tuple[str, ...], destination: Path) -> None:
    """Write the modules named `roots`, and those that they import, as the package `destination`.

    Raises:
        ValueError: two of them have the same last name, or one has an import of a form that is not
            copied.
    """
    copied: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        name = module.rpartition(".")[2]
        if copied.setdefault(name, module) != module:
            raise ValueError(f"{module} and {copied[name]} would be one file")
        if (destination / f"{name}.py").exists():
            continue
        source = _source(module)
        imported = _imports(source)
        destination.mkdir(parents=True, exist_ok=True)
        relative = re.sub(
            rf"\bfrom {PACKAGE}\.(?:\w+\.)*(\w+) import\b", r"from .\1 import", source
        )
        if len(_imports(relative)):
            raise ValueError(f"{module} imports {PACKAGE} in a form that is not copied")
        (destination / f"{name}.py").write_text(relative, encoding="utf-8")
        waiting += imported
    (destination / "__init__.py").touch()


def _imports(source: str) -> list[str]:
    """The modules of this package that `source` imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.partition(".")[0] == PACKAGE]


def _source(module: str) -> str:
    found = find_spec(module)
    if found is None or found.origin is None or Path(found.origin).stem == "__init__":
        raise ValueError(f"{module} is no module that can be copied")
    return Path(found.origin).read_text(encoding="utf-8")
