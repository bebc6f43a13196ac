"""What monitoring found, as numbers with a history: the vocabulary, and what keeps it.

A report writes its numbers here besides its page; whatever looks over several windows (dashboards,
confirmation of drift, retraining, alerts) reads them from here and nowhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isnan
from typing import Protocol

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
)

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.database import Database

ALL = ""
"""The column, segment or version of a metric that is about all of them together."""


class MetricName(StrEnum):
    """What was measured; the unit is a share in [0, 1] unless said otherwise."""

    ROWS = "rows"
    """Captured rows; `lower` and `upper` bound what was to be expected."""
    ROW_RATE = "row_rate"
    """Answered rows per hour, with those that sampling left out."""
    SILENCE = "silence_hours"
    """The longest time without a capture within the window, in hours."""
    REFUSED_SHARE = "refused_share"
    QUALITY_FINDINGS = "quality_findings"
    """How many faults the rows have in themselves; a finding if there is one."""
    MISSING_SHARE = "missing_share"
    OUT_OF_RANGE_SHARE = "out_of_range_share"
    NEW_CATEGORY_SHARE = "new_category_share"
    DUPLICATE_SHARE = "duplicate_share"
    DRIFT_EFFECT = "drift_effect"
    """Of each column, and of all together the multivariate effect; a finding if it drifted."""
    DRIFT_P_VALUE = "drift_p_value"
    """Adjusted for the number of tests."""
    DRIFT_E_VALUE = "drift_e_value"
    """The window's own evidence against "no drift", from 0 to infinity; 1 says nothing."""
    DRIFT_EVIDENCE = "drift_evidence"
    """The evidence of all windows up to this one; a finding where it confirms drift."""
    ESTIMATED_ACCURACY = "estimated_accuracy"
    """From calibrated probabilities alone; a finding if its interval is below the threshold."""
    ESTIMATE_OF_LABELLED = "estimated_accuracy_of_labelled"
    """The same of the labelled rows alone: what the realised accuracy is compared with; a finding
    if that is below for sure."""
    REALISED_ACCURACY = "realised_accuracy"
    """From labels; a finding if its interval is below the threshold."""
    ERROR_SHARE = "error_share"
    """Wrong predictions among the labelled rows of a segment."""
    CROSS_VALIDATED_ACCURACY = "cross_validated_accuracy"
    """Of the version that served, out of fold; a finding if the realised one is below for sure."""
    CHECK = "check"
    """Whether the asset check that stands for the column passed: 1 or 0, no value where it could
    not tell; a finding if it failed."""
    LABEL_COVERAGE = "label_coverage"
    LABEL_DELAY = "label_delay_hours"
    """The median, in hours."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one window.

    It is about ``column``, ``segment`` (as in ``role=canary``) and ``version``
    of the model, each `ALL` if about all. ``value`` is None if there was not enough data; ``lower``
    and ``upper`` bound its 95 % interval unless its name says otherwise; ``threshold`` is what it
    is held against; ``rows`` is how many rows it rests on; ``finding`` is the verdict: something is
    wrong.
    """

    window: Window
    name: MetricName
    value: float | None
    rows: int
    column: str = ALL
    segment: str = ALL
    version: str = ALL
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    finding: bool = False


class MetricsHistory(Protocol):
    """Every metric of every window, durable, safe for many processes at once."""

    def record(self, window: Window, report: str, metrics: Iterable[Metric]) -> None:
        """Make `metrics` all that `report` has ever said of `window`; durable on return.

        Recording the same again changes nothing.
        """

    def read(
        self,
        names: Sequence[MetricName] = (),
        *,
        since: Window | None = None,
        until: Window | None = None,
        newest: int | None = None,
    ) -> list[Metric]:
        """The metrics of those names (none given: all), in order of their windows.

        `since` and `until` are the first and last window to read; `newest` bounds how many windows
        are read, counted back from the last one that has any of these metrics.
        """

    def count(self, before: Window) -> int:
        """How many rows are known of the windows before `before`."""

    def forget(self, before: Window) -> int:
        """Delete what is known of the windows before `before`; how many rows that were."""

    def close(self) -> None:
        """Let go of the connections."""


_TABLES = MetaData()

METRICS = Table(
    "metrics",
    _TABLES,
    # The key of a window sorts as its time does.
    Column("window_key", String(16), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("column_name", Text, primary_key=True),
    Column("segment", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("report", Text, nullable=False),
    Column("value", Float),
    Column("rows", Integer, nullable=False),
    Column("lower", Float),
    Column("upper", Float),
    Column("threshold", Float),
    Column("finding", Boolean, nullable=False),
    Index("metrics_by_name", "name", "window_key"),
)


class SqlHistory:
    """A `MetricsHistory` in the SQL database at `uri`.

    Raises:
        UserError: the database cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self._database = Database(uri, _TABLES)

    def record(self, window: Window, report: str, metrics: Iterable[Metric]) -> None:
        """See `MetricsHistory.record`."""
        rows = [{**_row(metric), "report": report} for metric in metrics]
        of_report = (METRICS.c.window_key == window.key) & (METRICS.c.report == report)
        with self._database.transaction() as connection:
            connection.execute(delete(METRICS).where(of_report))
            if rows:
                connection.execute(insert(METRICS), rows)

    def read(
        self,
        names: Sequence[MetricName] = (),
        *,
        since: Window | None = None,
        until: Window | None = None,
        newest: int | None = None,
    ) -> list[Metric]:
        """See `MetricsHistory.read`."""
        wanted: list[ColumnElement[bool]] = [METRICS.c.name.in_(names)] if names else []
        if since is not None:
            wanted.append(METRICS.c.window_key >= since.key)
        if until is not None:
            wanted.append(METRICS.c.window_key <= until.key)
        with self._database.reading() as connection:
            if newest is not None:
                keys = select(METRICS.c.window_key).where(*wanted).distinct()
                newest_first = keys.order_by(METRICS.c.window_key.desc()).limit(newest)
                wanted.append(METRICS.c.window_key.in_(newest_first))
            rows = connection.execute(select(METRICS).where(*wanted).order_by(*METRICS.primary_key))
            return [_metric(row) for row in rows.mappings()]

    def count(self, before: Window) -> int:
        """See `MetricsHistory.count`."""
        known = select(func.count()).select_from(METRICS).where(METRICS.c.window_key < before.key)
        with self._database.reading() as connection:
            return connection.execute(known).scalar_one()

    def forget(self, before: Window) -> int:
        """See `MetricsHistory.forget`."""
        with self._database.transaction() as connection:
            gone = connection.execute(delete(METRICS).where(METRICS.c.window_key < before.key))
            return gone.rowcount

    def close(self) -> None:
        """See `MetricsHistory.close`."""
        self._database.close()


def open_history(uri: str) -> MetricsHistory:
    """The history at `uri`, ``sqlite:///path`` or ``postgresql://...``, created if need be.

    Raises:
        UserError: the database cannot be used.
    """
    return SqlHistory(uri)


def _row(metric: Metric) -> dict[str, object]:
    # Numbers of numpy are no numbers to every driver, and "not a number" is one to some only.
    return {
        "window_key": metric.window.key,
        "name": str(metric.name),
        "column_name": metric.column,
        "segment": metric.segment,
        "version": metric.version,
        "value": _number(metric.value),
        "rows": int(metric.rows),
        "lower": _number(metric.lower),
        "upper": _number(metric.upper),
        "threshold": _number(metric.threshold),
        "finding": bool(metric.finding),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or isnan(value) else float(value)


def _metric(row: RowMapping) -> Metric:
    return Metric(
        window=Window.from_key(row["window_key"]),
        name=MetricName(row["name"]),
        value=row["value"],
        rows=row["rows"],
        column=row["column_name"],
        segment=row["segment"],
        version=row["version"],
        lower=row["lower"],
        upper=row["upper"],
        threshold=row["threshold"],
        finding=row["finding"],
    )
