"""Keep secrets out of all that Dagster writes to its databases.

Dagster serialises the errors of any code and the metadata of any event as they come. So the two
functions through which all of it goes are replaced, once in a process, at the latest when their
modules are imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from mlschool_dagster.credentials import scrub, scrub_logs_and_tracebacks
from mlschool_dagster.dagster_internals import STORAGES, SerializableErrorInfo


def scrub_exits() -> None:
    """From now on, no log, event, error or tick that this process writes holds a secret."""
    scrub_logs_and_tracebacks()
    for name in STORAGES:
        _when_imported(name, lambda module: _replace(module, "serialize_value", scrub))
    _replace(SerializableErrorInfo, "from_traceback", _scrubbed)


def _scrubbed(error: SerializableErrorInfo) -> SerializableErrorInfo:
    return SerializableErrorInfo(
        scrub(error.message),
        [scrub(line) for line in error.stack],
        error.cls_name,
        error.cause,
        error.context,
    )


def _replace(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Let `change` see all that the function `name` of `owner` returns."""
    original = getattr(owner, name)
    if getattr(original, "scrubs", False):
        return

    def changed(*arguments: Any, **options: Any) -> Any:
        return change(original(*arguments, **options))

    changed.scrubs = True  # type: ignore[attr-defined]
    setattr(owner, name, changed)


def _when_imported(name: str, change: Callable[[ModuleType], None]) -> None:
    """Call `change` on the module `name`: now if it is imported, else once it is."""
    if name in sys.modules:
        change(sys.modules[name])
    elif not any(isinstance(f, _Finder) and f.name == name for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, change))


class _Finder(MetaPathFinder):
    """Import hook that finds one module as usual and patches it after execution."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self.name = name
        self._change = change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                self._change(module)

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec
