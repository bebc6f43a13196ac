"""The data spec: the one declarative statement of what a data set is.

A spec is a YAML file (one is in ``data/``). Everything that needs to know a column reads it
from here: contract, features, request validation, simulated traffic, monitoring.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlschool_dagster.dataset.documents import Complaints, load_yaml
from mlschool_dagster.errors import UserError

InputValue = float | int | str | bool | None
"""Value of one cell of a request, a capture or a row of data."""

LARGEST = 1e15
"""Bound of a plausible range: beyond it, floating point skips whole numbers."""
LONGEST_NAME = 100
LONGEST_TEXT = 256
"""Most characters of a category or class; so long is the longest text of a request."""


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A measured quantity: its unit and the closed range in which a value is plausible."""

    TYPE: ClassVar = "numeric"

    name: str
    description: str
    minimum: float
    maximum: float
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """A quality with a known set of values.

    ``allow_unknown`` lets a request carry a value outside ``categories``; the model then sees none
    of the known ones.
    """

    TYPE: ClassVar = "categorical"

    name: str
    description: str
    categories: tuple[str, ...]
    nullable: bool = False
    allow_unknown: bool = False


Column = NumericColumn | CategoricalColumn

PREDICTION = "prediction"
CONFIDENCE = "confidence"
PROBABILITY_PREFIX = "probability_"

ROLE = "role"
SAMPLING_SHARE = "sampling_share"
MODEL_VERSION = "model_version"
SOURCE_FILE = "source_file"
ROW_NUMBER = "row_number"
EVENT_ID = "event_id"
CAPTURED_AT = "captured_at"
ENDPOINT = "endpoint"
WINDOW = "window"
INPUT_KEY = "key"
LABEL = "label"
LABELLED_AT = "labelled_at"
LABEL_SOURCE = "source"
TOGETHER = "all columns together"
"""Name, in sentences, of a finding that is about no single column."""

RESERVED = (
    PREDICTION,
    CONFIDENCE,
    EVENT_ID,
    CAPTURED_AT,
    ENDPOINT,
    MODEL_VERSION,
    ROLE,
    SAMPLING_SHARE,
    SOURCE_FILE,
    ROW_NUMBER,
    WINDOW,
    INPUT_KEY,
    LABEL,
    LABELLED_AT,
    LABEL_SOURCE,
    TOGETHER,
)
"""Names of what the platform itself keeps beside the columns, as it does ``probability_...``."""
RESERVED_PREFIXES = (PROBABILITY_PREFIX, "__")
"""Prefixes of such names; pandas calls an index without a name ``__index_level_0__``."""


@dataclass(frozen=True, slots=True)
class Target:
    """Target of the model: one of ``classes``, in the order of the model's outputs."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """Requirements on a data set as a whole before anything is trained on it.

    Shares are fractions of rows in [0, 1]; the missing share holds for each nullable column.
    """

    minimum_rows: int
    maximum_missing_share: float
    maximum_duplicate_share: float


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A data set: its name (also the registered model's), columns in order, target and contract.

    ``protected`` names the categorical columns across which the model should err equally often.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    target: Target
    contract: Contract
    protected: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[NumericColumn, ...]:
        """The numeric input columns, in order."""
        return tuple(c for c in self.columns if isinstance(c, NumericColumn))

    @property
    def categorical(self) -> tuple[CategoricalColumn, ...]:
        """The categorical input columns, in order."""
        return tuple(c for c in self.columns if isinstance(c, CategoricalColumn))

    @property
    def input_names(self) -> list[str]:
        """Names of the input columns, in order."""
        return [c.name for c in self.columns]

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-compatible data; `DataSpec.from_dict` reads it back."""
        document = asdict(self)
        for column, entry in zip(self.columns, document["columns"], strict=True):
            entry["type"] = column.TYPE
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DataSpec":
        """A spec from plain data.

        Raises:
            UserError: entries are missing, unknown, of the wrong kind or contradictory: all of them
                in one sentence, each with its path, as in ``columns[2].maximum``.
        """
        return _checked(document, "The data spec")


def probability_column(label: str) -> str:
    """The name of the column that holds the predicted probability of class `label`."""
    return f"{PROBABILITY_PREFIX}{label}"


def load_spec(path: Path) -> DataSpec:
    """The spec written in the YAML file at `path`.

    Raises:
        UserError: the file is missing, not YAML, or not a spec.
    """
    return _checked(load_yaml(path, "The data spec"), f"The data spec {path}")


def _checked(document: Any, subject: str) -> DataSpec:
    complaints = Complaints()
    spec: DataSpec | None = complaints.read(DataSpec, document, "")
    if spec is not None:
        complaints.extend(_contradictions(spec))
    if spec is None or complaints:
        raise UserError(complaints.sentence(subject))
    return spec


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
# What ends a line, cannot be encoded or cannot be seen, and so is no part of a name.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def _contradictions(spec: DataSpec) -> Iterator[str]:
    """The faults of entries that are all of the right type."""
    if not _NAME.fullmatch(spec.name):
        yield (
            f"name is {spec.name[:80]!r}, but becomes that of assets, files and the registered "
            "model: use up to 63 letters, digits and underscores, a letter first"
        )
    elif spec.name.lower() == "default":
        yield f"name is {spec.name}, which MLflow calls an experiment of its own; choose another"
    if not spec.columns:
        yield "columns is empty; describe at least one"
    named = [(f"columns[{at}].name", column.name) for at, column in enumerate(spec.columns)]
    yield from _names([*named, ("target.name", spec.target.name)])
    for at, column in enumerate(spec.columns):
        if isinstance(column, NumericColumn):
            yield from _range(column, f"columns[{at}]")
        else:
            yield from _values(column.categories, f"columns[{at}].categories", 1)
    yield from _values(spec.target.classes, "target.classes", 2)
    for name in ("maximum_missing_share", "maximum_duplicate_share"):
        if not 0 <= (share := getattr(spec.contract, name)) <= 1:
            yield f"contract.{name} is {share:g}, but must be a share from 0 to 1"
    groups = [column.name for column in spec.categorical]
    unfit = [name for name in spec.protected if name not in groups]
    if unfit:
        yield (
            f"protected names {', '.join(unfit)}, which is no categorical column; choose among: "
            f"{', '.join(groups) or 'none in this data set'}"
        )
    yield from _repeated(spec.protected, "protected")


def _names(named: list[tuple[str, str]]) -> Iterator[str]:
    names = [name for _, name in named]
    for at, (path, name) in enumerate(named):
        if (wrong := _unfit(name, LONGEST_NAME)) is not None:
            yield f"{path} {wrong}"
        elif name in RESERVED or name.startswith(RESERVED_PREFIXES):
            yield f"{path} is {name}, a name that the platform itself uses; rename the column"
        elif name in names[:at]:
            yield f"{path} is {name}, which {named[names.index(name)][0]} is already"


def _range(column: NumericColumn, path: str) -> Iterator[str]:
    for entry in ("minimum", "maximum"):
        if abs(bound := getattr(column, entry)) > LARGEST:
            yield (
                f"{path}.{entry} is {bound:g}, but a plausible range lies within {-LARGEST:g} and "
                f"{LARGEST:g}; give the range in which a value can be right, or use another unit"
            )
    if not column.minimum < column.maximum:
        yield f"{path}.minimum is {column.minimum:g}, but must be less than {path}.maximum"
    if column.unit and (wrong := _unfit(column.unit, LONGEST_NAME)) is not None:
        yield f"{path}.unit {wrong}"


def _values(values: tuple[str, ...], path: str, fewest: int) -> Iterator[str]:
    if len(values) < fewest:
        yield f"{path} must have at least {fewest}"
    for at, value in enumerate(values):
        if (wrong := _unfit(value, LONGEST_TEXT)) is not None:
            yield f"{path}[{at}] {wrong}"
    yield from _repeated(values, path)


def _repeated(values: tuple[str, ...], path: str) -> Iterator[str]:
    seen: set[str] = set()
    for at, value in enumerate(values):
        if value in seen:
            yield f"{path}[{at}] is {value}, which is there already"
        seen.add(value)


def _unfit(text: str, longest: int) -> str | None:
    """Why `text` can be no name, category or class, if it cannot."""
    if not text.strip():
        return "is empty; write a name"
    if len(text) > longest:
        return f"has {len(text)} characters, but at most {longest} are read"
    if text != text.strip():
        return f"is {text!r}, but white space around a cell is dropped when data is read; drop it"
    if _UNWRITABLE.search(text):
        return f"is {text!r}, but has a character that cannot be shown; leave it out"
    return None
