"""The history of metrics as one table: a row per window, metric, column, segment and version."""

from collections.abc import Iterable, Sequence
from math import isnan

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
from mlschool_dagster.monitoring.metrics import Metric, MetricName, MetricsHistory

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
