"""Data quality: what is wrong with a window's rows in themselves, whatever the model makes of them.

What is refused never becomes a capture: it is counted by its reason beside them. So most faults
seen in rows come from stores that others write or from inputs that are valid one by one and odd
together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mlschool_dagster.modeling.spec import (
    SAMPLING_SHARE,
    CategoricalColumn,
    Column,
    DataSpec,
    NumericColumn,
)
from mlschool_dagster.monitoring.config import MAXIMUM_REFUSED_SHARE
from mlschool_dagster.monitoring.statistics import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

MINIMUM_ROWS = 30
"""The least number of values from which a column can be called constant: fewer repeat by chance."""


@dataclass(frozen=True, slots=True)
class ColumnQuality:
    """The state of one input column in a window.

    Shares are fractions of rows, None in an empty window; ``new_categories`` counts the rows of
    each value outside the spec's categories, most frequent first.
    """

    column: str
    missing: int
    missing_share: float | None
    reference_missing_share: float | None
    out_of_range: int
    new_categories: dict[str, int]
    distinct: int


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The state of a window's rows; ``findings`` are sentences that name columns.

    ``duplicate_events`` are rows whose event id came before; ``duplicate_rows`` are rows whose
    inputs all came before, which is no fault in itself: clients may well ask the same thing twice.
    ``refusals`` counts what was refused in the window by reason, most frequent first;
    ``refused_share`` is their share among refusals and answered rows, None if there are neither.
    """

    n_current: int
    n_reference: int
    duplicate_events: int
    duplicate_rows: int
    model_versions: dict[str, int]
    refusals: dict[str, int]
    refused_share: float | None
    columns: tuple[ColumnQuality, ...]
    findings: tuple[str, ...]

    @property
    def refused(self) -> int:
        """How many refusals there were, whatever their reason."""
        return sum(self.refusals.values())

    @property
    def summary(self) -> str:
        """The report as one sentence."""
        if not self.findings:
            return f"No fault found in {self.n_current} rows."
        return " ".join(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible data."""
        return {**asdict(self), "findings": list(self.findings), "columns": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a column, for a table."""
        return [asdict(column) for column in self.columns]


def quality(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    refusals: Mapping[str, int] = MappingProxyType({}),
) -> QualityReport:
    """Examines a window (`frames.current_frame`) against the spec and the reference.

    `refusals` are those of the window by reason, as `CaptureStore.refusals` gives them.
    """
    columns = tuple(_column(current, reference, column) for column in spec.columns)
    duplicate_events = int(current["event_id"].duplicated().sum())
    refused, answered = sum(refusals.values()), _answered(current)
    findings: list[str] = []
    if current.empty:
        findings.append("The window holds no captures.")
    if duplicate_events:
        findings.append(f"{duplicate_events} rows repeat an event id of the window.")
    # Beyond chance, or the first refusal of a quiet hour would be a finding.
    if wilson_interval(refused, refused + answered)[0] > MAXIMUM_REFUSED_SHARE:
        findings.append(_refused(refusals, refused, answered))
    for column, measured in zip(spec.columns, columns, strict=True):
        findings.extend(_faults(column, measured, current, reference, spec))
    return QualityReport(
        n_current=len(current),
        n_reference=len(reference),
        duplicate_events=duplicate_events,
        duplicate_rows=int(current.duplicated(subset=spec.input_names).sum()),
        model_versions={
            str(version): int(rows)
            for version, rows in current["model_version"].value_counts().items()
        },
        refusals=dict(refusals),
        refused_share=refused / (refused + answered) if refused + answered else None,
        columns=columns,
        findings=tuple(findings),
    )


def _answered(current: "pd.DataFrame") -> int:
    """How many rows were answered, when only a share of them is captured."""
    return round(float((1.0 / current[SAMPLING_SHARE]).sum()))


def _refused(refusals: Mapping[str, int], refused: int, answered: int) -> str:
    reason, count = max(refusals.items(), key=lambda entry: entry[1])
    share = refused / (refused + answered)
    return (
        f"{refused} refusals beside {answered} answered rows ({share:.1%}) are more than "
        f"{MAXIMUM_REFUSED_SHARE:.0%}; the most frequent reason is {reason!r} ({count})."
    )


def _column(current: "pd.DataFrame", reference: "pd.DataFrame", column: Column) -> ColumnQuality:
    values = current[column.name]
    missing = int(values.isna().sum())
    out_of_range, new_categories = 0, {}
    if isinstance(column, NumericColumn):
        out_of_range = int(((values < column.minimum) | (values > column.maximum)).sum())
    else:
        new = values[values.notna() & ~values.isin(column.categories)]
        new_categories = {str(value): int(rows) for value, rows in new.value_counts().items()}
    return ColumnQuality(
        column=column.name,
        missing=missing,
        missing_share=missing / len(values) if len(values) else None,
        reference_missing_share=_share_missing(reference[column.name]),
        out_of_range=out_of_range,
        new_categories=new_categories,
        distinct=int(values.nunique()),
    )


def _share_missing(values: "pd.Series") -> float | None:
    return float(values.isna().mean()) if len(values) else None


def _faults(
    column: Column,
    measured: ColumnQuality,
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
) -> Iterator[str]:
    name, rows = column.name, len(current)
    if measured.missing and not column.nullable:
        yield f"{name} is missing in {measured.missing} of {rows} rows, where none may be."
    # The share must exceed the contract beyond chance, or a window of few rows would always fail.
    elif wilson_interval(measured.missing, rows)[0] > spec.contract.maximum_missing_share:
        share = measured.missing / rows
        yield (
            f"{name} is missing in {measured.missing} of {rows} rows ({share:.1%}), "
            f"more than the contract's {spec.contract.maximum_missing_share:.1%} "
            f"(reference {measured.reference_missing_share or 0:.1%})."
        )
    if isinstance(column, NumericColumn) and measured.out_of_range:
        unit = f" {column.unit}" if column.unit else ""
        yield (
            f"{name} lies outside {column.minimum:g} to {column.maximum:g}{unit} "
            f"in {measured.out_of_range} of {rows} rows."
        )
    if isinstance(column, CategoricalColumn) and measured.new_categories:
        affected = sum(measured.new_categories.values())
        shown = ", ".join(repr(value) for value in list(measured.new_categories)[:5])
        yield f"{name} has values outside its categories in {affected} of {rows} rows: {shown}."
    present = rows - measured.missing
    if measured.distinct == 1 and present >= MINIMUM_ROWS and reference[name].nunique() > 1:
        yield f"{name} has one and the same value in all {present} rows that have it."
