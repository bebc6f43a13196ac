"""Plain data (of YAML or JSON) as frozen dataclasses, each entry checked against its field's type.

Belongs here: types, missing and unknown entries, and what YAML makes of words without quotes. Does
not belong here: what the entries mean together, which the owner of the dataclasses checks.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from mlschool_dagster.errors import UserError

SHOWN = 10
"""How many complaints a sentence lists before it only counts them."""


class Complaints(list[str]):
    """The faults of a document, one clause each, which begins with the entry's path."""

    def sentence(self, subject: str) -> str:
        """All complaints about `subject` as one line."""
        more = f"; and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"{subject} cannot be used: {'; '.join(self[:SHOWN])}{more}."

    def read(self, kind: Any, value: Any, path: str) -> Any:
        """`value` as a `kind`; None, and a complaint more, if it is something else.

        Kinds: str, bool, int (at least 0), float (finite), a dataclass of such fields, a union of
        dataclasses (each names itself in a class variable ``TYPE``, as the entry ``type`` does),
        and tuples of one kind.
        """
        if get_origin(kind) is tuple:
            return self._sequence(get_args(kind)[0], value, path)
        if get_origin(kind) is UnionType:
            return self._variant(get_args(kind), value, path)
        if is_dataclass(kind):
            return self._record(kind, value, path)
        if (wrong := _SCALARS[kind](value)) is not None:
            self.append(f"{path} {wrong}")
            return None
        return float(value) if kind is float else value

    def _sequence(self, kind: Any, value: Any, path: str) -> tuple[Any, ...] | None:
        if not isinstance(value, list | tuple):
            self.append(f"{path} must be a list, but is {_described(value)}")
            return None
        return tuple(self.read(kind, item, f"{path}[{at}]") for at, item in enumerate(value))

    def _variant(self, kinds: tuple[Any, ...], value: Any, path: str) -> Any:
        by_name = {kind.TYPE: kind for kind in kinds}
        if not isinstance(value, Mapping):
            return self._record(kinds[0], value, path)
        name = value.get("type")
        if not isinstance(name, str) or name not in by_name:
            known = " or ".join(by_name)
            self.append(
                f"{path}.type must be {known}, but is {_described(name)}"
                if "type" in value
                else f"{path} lacks the entry type; it is {known}"
            )
            return None
        return self._record(by_name[name], value, path, ignored="type")

    def _record(self, kind: Any, value: Any, path: str, ignored: str = "") -> Any:
        within = f"{path}." if path else ""
        if not isinstance(value, Mapping):
            self.append(
                f"{path or 'it'} must be a mapping with the entries "
                f"{', '.join(field.name for field in fields(kind))}, but is {_described(value)}"
            )
            return None
        before = len(self)
        known = {field.name: field for field in fields(kind)}
        for key in value:
            if key not in known and (key != ignored or not ignored):
                self.append(
                    f"{within}{_short(key)} is no known entry; "
                    f"{path or 'the document'} has {', '.join(known)}"
                )
        read = {
            name: self.read(field.type, value[name], f"{within}{name}")
            for name, field in known.items()
            if name in value
        }
        self.extend(
            f"{path or 'it'} lacks the entry {name}"
            for name, field in known.items()
            if name not in value and field.default is MISSING
        )
        return kind(**read) if len(self) == before else None


def load_yaml(path: Path, subject: str) -> Any:
    """The content of the YAML file at `path`; `subject` names it in sentences.

    Raises:
        UserError: it cannot be read, is not YAML, or has an entry twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's own loader takes the last of entries with one name, and drops the others."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """See `yaml.SafeLoader`."""
            named: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in named:
                    problem = f"the entry {_short(key.value)} is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                if isinstance(key, yaml.ScalarNode):
                    named.add(key.value)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{subject} {path} is no regular file; give the path of a YAML file.")
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)  # noqa: S506 - a safe one
    except OSError as error:
        raise UserError(f"{subject} {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{subject} {path} is not UTF-8; save it in that encoding.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" near line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{subject} {path} is not valid YAML{where}: {error.problem or error.context}."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{subject} {path} is not valid YAML: {reason}.") from None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return None
    return f"must be text, but is {_described(value)}{_QUOTE}"


def _flag(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    return f"must be true or false, without quotes, but is {_described(value)}"


def _whole_number(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return None
    return f"must be a whole number from 0, but is {_described(value)}"


def _number(value: Any) -> str | None:
    message = f"must be a finite number, but is {_described(value)}"
    if isinstance(value, str):
        return message + _as_number(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return message
    try:
        return None if math.isfinite(float(value)) else message
    except OverflowError:
        return message


_SCALARS = {str: _text, bool: _flag, int: _whole_number, float: _number}
_QUOTE = ": put it in quotes"


def _as_number(text: str) -> str:
    """How the number that `text` was meant to be is written in YAML."""
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return ""
    mantissa, e, exponent = repr(number).partition("e")
    # To YAML 1.1, 1e-05 is text and 1.0e-05 is a number.
    mantissa = mantissa if "." in mantissa or not e else f"{mantissa}.0"
    return f": write {mantissa}{e}{exponent}" if math.isfinite(number) else ""


def _described(value: Any) -> str:
    """`value` in the words of the document's author."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        words = "Yes, On and true" if value else "No, Off and false"
        return f"the truth value {str(value).lower()} (as YAML reads {words} without quotes)"
    if isinstance(value, str):
        return f"the text {_short(value)}"
    if isinstance(value, int | float):
        return f"the number {_short(value)}"
    if isinstance(value, date):
        return f"the date {value.isoformat()}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        return "of too many digits"
    return text if len(text) <= 60 else f"{text[:56]} ..."
