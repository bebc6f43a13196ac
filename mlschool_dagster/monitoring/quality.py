"""Data quality: faults of a window's rows in themselves, whatever the model predicts.

Refused requests never become captures; they are counted by reason beside them. So most faults in
rows come from stores that others write, or from inputs that are valid one by one and odd together.
Rows are counted chunk by chunk; of each row two hashes remain, to detect duplicates.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import (
    MODEL_VERSION,
    SAMPLING_SHARE,
    CategoricalColumn,
    Column,
    DataSpec,
    NumericColumn,
)
from mlschool_dagster.monitoring.snapshot import event_hashes
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster.monitoring.thresholds import MAXIMUM_REFUSED_SHARE

if TYPE_CHECKING:
    import pandas as pd

MINIMUM_ROWS = 30
"""The least number of values from which a column can be called constant."""

CHANCE_OF_ONE_VALUE = 1e-4
"""A column is called constant if it is less likely than this by chance: a column that nearly always
has one value has it in all rows of many windows."""

DISTINCT_COUNTED = 1000
"""Distinct values of a column are counted up to this many."""

NEW_COUNTED = 1000
"""Values outside a column's categories are counted one by one up to this many: clients choose
them."""

LONGEST_VALUE = 60
"""The letters of a value that are compared and shown."""


@dataclass(frozen=True, slots=True)
class ColumnQuality:
    """The state of one input column in a window.

    Shares are fractions of rows, None in an empty window; ``new_category`` counts the rows with a
    value outside the spec's categories, ``new_categories`` those of each such value, most frequent
    first; ``distinct`` is exact up to `DISTINCT_COUNTED`, which stands for any larger number;
    ``only`` is the value of a column that has one.
    """

    column: str
    missing: int
    missing_share: float | None
    reference_missing_share: float | None
    missing_is_fault: bool
    out_of_range: int
    new_category: int
    new_categories: dict[str, int]
    distinct: int
    only: Any = None

    @property
    def is_faulty(self) -> bool:
        """Whether any of its values is missing, out of range or new where it may not be."""
        return bool(self.missing_is_fault or self.out_of_range or self.new_category)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The state of a window's rows; ``findings`` are sentences that name columns.

    ``duplicate_events`` are rows whose event id came before; ``duplicate_rows`` are rows whose
    inputs all came before, which is no fault in itself: clients may well ask the same thing twice.
    ``refusals`` counts what was refused in the window by reason, most frequent first;
    ``refused_share`` is their share among these and ``answered`` rows, None if there are neither.
    """

    n_current: int
    n_reference: int
    duplicate_events: int
    duplicate_rows: int
    model_versions: dict[str, int]
    refusals: dict[str, int]
    answered: int
    too_many_refused: bool
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
        if self.findings:
            return " ".join(self.findings)
        if not self.n_current:
            return "The window has no captures."
        return f"No fault in {self.n_current} rows."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible data."""
        return {**asdict(self), "findings": list(self.findings), "columns": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a column, for a table; what was not counted to its end says so."""
        return [
            {
                **{key: value for key, value in asdict(column).items() if key != "only"},
                "distinct": column.distinct
                if column.distinct < DISTINCT_COUNTED
                else f"{DISTINCT_COUNTED:,} or more",
            }
            for column in self.columns
        ]


def columns_read(spec: DataSpec) -> list[str]:
    """The columns of a window's chunks that `quality` reads."""
    return ["event_id", MODEL_VERSION, SAMPLING_SHARE, *spec.input_names]


def quality(
    chunks: "Iterable[pd.DataFrame]",
    reference: "pd.DataFrame",
    spec: DataSpec,
    refusals: Mapping[str, int] = MappingProxyType({}),
) -> QualityReport:
    """Check a window against the spec and the reference.

    The window comes as `chunks` of its rows (`snapshot.captures_table`), each seen once,
    with at least `columns_read`.
    `refusals` are those of the window by reason, as `CaptureStore.refusals` gives them.
    """
    counted = _Counted(spec)
    for chunk in chunks:
        counted.add(chunk)
    columns = tuple(
        part.measured(counted.rows, _share_missing(reference[part.column.name]), spec)
        for part in counted.columns
    )
    duplicate_events = _repetitions(counted.events)
    refused, answered = sum(refusals.values()), round(counted.answered)
    findings: list[str] = []
    if duplicate_events:
        findings.append(f"{duplicate_events} rows repeat an event id of the window.")
    # Beyond chance, or the first refusal of a quiet hour would be a finding.
    too_many = wilson_interval(refused, refused + answered)[0] > MAXIMUM_REFUSED_SHARE
    if too_many:
        findings.append(_refused(refusals, refused, answered))
    for column, measured in zip(spec.columns, columns, strict=True):
        findings.extend(_faults(column, measured, counted.rows, reference, spec))
    return QualityReport(
        n_current=counted.rows,
        n_reference=len(reference),
        duplicate_events=duplicate_events,
        duplicate_rows=_repetitions(counted.inputs),
        model_versions=dict(counted.versions.most_common()),
        refusals=dict(refusals),
        answered=answered,
        too_many_refused=too_many,
        refused_share=refused / (refused + answered) if refused + answered else None,
        columns=columns,
        findings=tuple(findings),
    )


class _Counted:
    """Counts of a window, chunk by chunk.

    ``answered`` is how many rows were answered, when only a share of them is captured.
    """

    def __init__(self, spec: DataSpec) -> None:
        self._names = spec.input_names
        self.columns = [_CountedColumn(column) for column in spec.columns]
        self.rows = 0
        self.answered = 0.0
        self.versions: Counter[str] = Counter()
        self.events: list[np.ndarray[Any, Any]] = []
        self.inputs: list[np.ndarray[Any, Any]] = []

    def add(self, chunk: "pd.DataFrame") -> None:
        from pandas.util import hash_pandas_object

        self.rows += len(chunk)
        self.answered += float((1.0 / chunk[SAMPLING_SHARE]).sum())
        self.versions.update(_counts(chunk[MODEL_VERSION]))
        self.events.append(event_hashes(chunk["event_id"]))
        self.inputs.append(hash_pandas_object(chunk[self._names], index=False).to_numpy())
        for column in self.columns:
            column.add(chunk[column.column.name])


class _CountedColumn:
    """Counts of one column."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.missing = self.out_of_range = self.new_category = 0
        self.new: Counter[str] = Counter()
        self.distinct: set[Any] = set()

    def add(self, values: "pd.Series[Any]") -> None:
        self.missing += int(values.isna().sum())
        if isinstance(self.column, NumericColumn):
            outside = (values < self.column.minimum) | (values > self.column.maximum)
            self.out_of_range += int(outside.sum())
            self._see(values.dropna().unique().tolist())
            return
        counts = _counts(values)
        self._see(list(counts))
        for value in self.column.categories:
            counts.pop(value, None)
        for name, rows in counts.items():
            self.new_category += rows
            value = name if len(name) <= LONGEST_VALUE else f"{name[:LONGEST_VALUE]}…"
            if value in self.new or len(self.new) < NEW_COUNTED:
                self.new[value] += rows

    def _see(self, values: Sequence[Any]) -> None:
        if len(self.distinct) < DISTINCT_COUNTED:
            self.distinct.update(values[:DISTINCT_COUNTED])

    def measured(self, rows: int, reference_share: float | None, spec: DataSpec) -> ColumnQuality:
        # The share must exceed the contract beyond chance, or a window of few rows would always
        # fail.
        beyond = wilson_interval(self.missing, rows)[0] > spec.contract.maximum_missing_share
        return ColumnQuality(
            column=self.column.name,
            missing=self.missing,
            missing_share=self.missing / rows if rows else None,
            reference_missing_share=reference_share,
            missing_is_fault=beyond if self.column.nullable else self.missing > 0,
            out_of_range=self.out_of_range,
            new_category=self.new_category,
            new_categories=dict(self.new.most_common()),
            distinct=min(len(self.distinct), DISTINCT_COUNTED),
            only=next(iter(self.distinct)) if len(self.distinct) == 1 else None,
        )


def _counts(values: "pd.Series[Any]") -> dict[str, int]:
    """How often each value is there, the most frequent first."""
    return {str(value): int(rows) for value, rows in values.value_counts().items() if rows}


def _repetitions(hashes: "list[np.ndarray[Any, Any]]") -> int:
    """How many values came before."""
    every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0)
    return int((every[1:] == every[:-1]).sum())


def _refused(refusals: Mapping[str, int], refused: int, answered: int) -> str:
    reason, count = max(refusals.items(), key=lambda entry: entry[1])
    share = refused / (refused + answered)
    return (
        f"{refused} refusals beside {answered} answered rows ({share:.1%}) are more than "
        f"{MAXIMUM_REFUSED_SHARE:.0%}; the most frequent reason is {reason!r} ({count})."
    )


def _share_missing(values: "pd.Series") -> float | None:
    return float(values.isna().mean()) if len(values) else None


def _faults(
    column: Column,
    measured: ColumnQuality,
    rows: int,
    reference: "pd.DataFrame",
    spec: DataSpec,
) -> Iterator[str]:
    name = column.name
    if measured.missing_is_fault and not column.nullable:
        yield f"{name} is missing in {measured.missing} of {rows} rows, where none may be."
    elif measured.missing_is_fault:
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
        shown = ", ".join(repr(value) for value in list(measured.new_categories)[:5])
        affected = f"{measured.new_category} of {rows} rows"
        yield f"{name} has values outside its categories in {affected}: {shown}."
    present = rows - measured.missing
    constant = measured.only is not None and present >= MINIMUM_ROWS
    if constant and _chance_of(measured.only, present, reference[name]) < CHANCE_OF_ONE_VALUE:
        yield f"{name} has one and the same value in all {present} rows that have it."


def _chance_of(value: Any, rows: int, reference: "pd.Series[Any]") -> float:
    """The chance that so many `rows` all have `value`, by the upper end of its share's interval.

    It is 1 where the reference has one value or none: nothing is known of how it may vary.
    """
    known = reference.dropna()
    if known.nunique() < 2:
        return 1.0
    share = wilson_interval(int((known == value).sum()), len(known))[1]
    return float(share**rows)
