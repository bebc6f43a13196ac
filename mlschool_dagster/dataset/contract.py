"""The data contract: a pandera schema, derived from the spec, that data must pass."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlschool_dagster.dataset.spec import CategoricalColumn, Column, DataSpec, NumericColumn
from mlschool_dagster.dataset.tables import describe_rows
from mlschool_dagster.errors import listed, quoted

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

DTYPE_CHECK = re.compile(r"dtype\('(.+)'\)")
"""How pandera names its check of a column's type."""

MINIMUM_CLASS_ROWS = 2
"""Fewest rows of each class: the fewest folds that cross-validation can be stratified into."""


def data_schema(spec: DataSpec) -> "pa.DataFrameSchema":
    """The pandera schema that `spec` states. Each check's ``error`` says what is wrong in words."""
    import pandera.pandas as pa

    target = CategoricalColumn(spec.target.name, "target", categories=spec.target.classes)
    columns = {column.name: _column_schema(column, spec) for column in spec.columns}
    columns[target.name] = _column_schema(target, spec)
    columns[target.name].checks += [_enough_of(name) for name in spec.target.classes]
    minimum = spec.contract.minimum_rows
    enough = pa.Check(lambda frame: len(frame) >= minimum, error=f"has fewer than {minimum} rows")
    return pa.DataFrameSchema(columns, checks=enough, name=spec.name)


def violations(frame: "pd.DataFrame", spec: DataSpec, *, recurring: bool = False) -> list[str]:
    """One sentence per rule that `frame` breaks, naming column and first rows; empty if none.

    Rows are named by the frame's index (see `read_data`). That rows repeat is no fault if it is
    known that individuals with equal inputs are many (`recurring`).
    """
    failures = _failure_cases(frame, spec)
    broken = [] if failures is None else list(_sentences(failures, frame))
    return broken if recurring else broken + _repetitions(frame, spec)


def rows_in_breach(frame: "pd.DataFrame", spec: DataSpec) -> "pd.Index":
    """The rows of `frame` (with a unique index) that break a rule by a value of their own."""
    failures = _failure_cases(frame, spec)
    return frame.index[[]] if failures is None else frame.index[frame.index.isin(failures["index"])]


def _failure_cases(frame: "pd.DataFrame", spec: DataSpec) -> "pd.DataFrame | None":
    """Pandera's list of what breaks the schema; None if nothing does."""
    import warnings

    from pandera.errors import SchemaErrors

    try:
        with warnings.catch_warnings():
            # pandera gathers its failure cases by a concatenation that pandas deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            data_schema(spec).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases: pd.DataFrame = errors.failure_cases
        return cases
    return None


def _sentences(failures: "pd.DataFrame", frame: "pd.DataFrame") -> Iterator[str]:
    mistyped = set()
    for (column, check), cases in failures.groupby(["column", "check"], sort=False, dropna=False):
        example = cases["failure_case"].iloc[0]
        rows = frame.index[frame.index.isin(cases["index"])]
        if check == "column_in_dataframe":
            yield f"Column {example} is missing."
        elif (dtype := DTYPE_CHECK.fullmatch(str(check))) is not None:
            mistyped.add(column)
            yield f"Column {column} has the type {frame[column].dtype}, not {dtype[1]}."
        elif column in mistyped:
            continue
        elif column not in frame.columns:
            yield f"The table {check}."
        elif not len(rows):
            yield f"Column {column} {check}."
        elif check == "not_nullable":
            yield f"Column {column} has missing values in {describe_rows(rows)}."
        else:
            yield f"Column {column} {check}, such as {quoted(example)}, in {describe_rows(rows)}."


def _repetitions(frame: "pd.DataFrame", spec: DataSpec) -> list[str]:
    share = spec.contract.maximum_duplicate_share
    names = [name for name in (*spec.input_names, spec.target.name) if name in frame.columns]
    repeated = frame.index[frame.duplicated(subset=names)]
    if len(repeated) <= share * len(frame):
        return []
    return [f"The table repeats more than {share:.0%} of its rows: {describe_rows(repeated)}."]


def _column_schema(column: Column, spec: DataSpec) -> "pa.Column":
    import pandera.pandas as pa

    checks = [_plausible(column)]
    if column.nullable:
        checks.append(_mostly_present(spec.contract.maximum_missing_share))
    dtype = float if isinstance(column, NumericColumn) else object
    return pa.Column(dtype, checks, nullable=column.nullable, description=column.description)


def _plausible(column: Column) -> "pa.Check":
    import pandera.pandas as pa

    if isinstance(column, NumericColumn):
        unit = f" {column.unit}" if column.unit else ""
        return pa.Check.in_range(
            column.minimum,
            column.maximum,
            error=f"has values outside {column.minimum:g} to {column.maximum:g}{unit}",
        )
    return pa.Check.isin(
        column.categories, error=f"has values other than {listed(column.categories)}"
    )


def _mostly_present(maximum_share: float) -> "pa.Check":
    import pandera.pandas as pa

    return pa.Check(
        lambda values: int(values.isna().sum()) <= maximum_share * len(values),
        ignore_na=False,
        error=f"lacks a value in more than {maximum_share:.0%} of the rows",
    )


def _enough_of(name: str) -> "pa.Check":
    import pandera.pandas as pa

    return pa.Check(
        lambda values: int((values == name).sum()) >= MINIMUM_CLASS_ROWS,
        error=f"has fewer than {MINIMUM_CLASS_ROWS} rows of {name}, too few to cross-validate",
    )
