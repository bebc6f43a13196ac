"""The data spec: the one declarative statement of what a data set is.

A spec is a YAML file (one is in ``data/``). Everything that needs to know a column reads it
from here: contract, features, request validation, simulated traffic, monitoring.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlschool_dagster.errors import UserError


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A measured quantity: its unit and the closed range in which a value is plausible."""

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

RESERVED = (
    PREDICTION,
    CONFIDENCE,
    "event_id",
    "captured_at",
    "endpoint",
    MODEL_VERSION,
    ROLE,
    SAMPLING_SHARE,
    SOURCE_FILE,
    ROW_NUMBER,
)
"""Names of what the platform itself keeps beside the columns, as it does ``probability_...``."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the model predicts: one of ``classes``, in the order of the model's outputs."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What a data set as a whole must satisfy before anything is trained on it.

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
            entry["type"] = "numeric" if isinstance(column, NumericColumn) else "categorical"
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DataSpec":
        """A spec from plain data.

        Raises:
            UserError: an entry is missing, unknown or contradictory.
        """
        try:
            target = document["target"]
            spec = cls(
                name=document["name"],
                description=document["description"],
                columns=tuple(_column(entry) for entry in document["columns"]),
                target=Target(target["name"], tuple(target["classes"])),
                contract=Contract(**document["contract"]),
                protected=tuple(document.get("protected", ())),
            )
        except KeyError as error:
            raise UserError(f"The data spec lacks the entry {error}; add it.") from None
        except TypeError as error:
            raise UserError(f"The data spec has an entry that does not fit: {error}.") from None
        names = [*spec.input_names, spec.target.name]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"The data spec names {', '.join(repeated)} twice; name each once.")
        taken = [n for n in names if n in RESERVED or n.startswith(PROBABILITY_PREFIX)]
        if taken:
            raise UserError(
                f"The data spec calls a column {', '.join(taken)}, a name that the platform itself "
                "uses; rename it."
            )
        groups = [column.name for column in spec.categorical]
        unfit = [name for name in spec.protected if name not in groups]
        if unfit:
            raise UserError(
                f"The data spec protects {', '.join(map(str, unfit))}, which is no categorical "
                f"column; choose among: {', '.join(groups) or 'none in this data set'}."
            )
        return spec


def probability_column(label: str) -> str:
    """The name of the column that holds the predicted probability of class `label`."""
    return f"{PROBABILITY_PREFIX}{label}"


def _column(entry: Mapping[str, Any]) -> Column:
    fields = {key: value for key, value in entry.items() if key != "type"}
    if entry["type"] == "numeric":
        return NumericColumn(**fields)
    if entry["type"] == "categorical":
        return CategoricalColumn(**{**fields, "categories": tuple(fields["categories"])})
    raise UserError(
        f"The data spec gives column {entry.get('name')!r} the type {entry['type']!r}; "
        "use 'numeric' or 'categorical'."
    )


def load_spec(path: Path) -> DataSpec:
    """The spec written in the YAML file at `path`.

    Raises:
        UserError: the file is missing, not YAML, or not a spec.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The data spec {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The data spec {path} is not valid YAML: {error}.") from None
    if not isinstance(document, dict):
        raise UserError(f"The data spec {path} must be a mapping with name, columns and target.")
    return DataSpec.from_dict(document)
