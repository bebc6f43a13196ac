"""Every metric of every window: one table in the history database, a row per number.

Whatever reads several windows (drift evidence, the dashboard, retraining, alerts) reads it here.
Apart from the vocabulary in `metrics`, so that loading the definitions imports no SQLAlchemy.
"""

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
from mlschool_dagster.monitoring.metrics import Metric, MetricName

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


class MetricsHistory:
    """The metrics in the database at `uri`, ``sqlite:///path`` or ``postgresql://...``.

    Durable, and safe for many processes at once.

    Raises:
        UserError: the database cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self._database = Database(uri, _TABLES)

    def record(self, window: Window, report: str, metrics: Iterable[Metric]) -> None:
        """Replace all that `report` has ever recorded of `window` by `metrics`; durable on return.

        Recording the same again changes nothing.
        """
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
        """The metrics of those `names` (none given: all), in order of their windows.

        `since` and `until` are the first and last window to read; `newest` bounds how many windows
        are read, counted back from the last one that has any of these metrics.
        """
        conditions: list[ColumnElement[bool]] = [METRICS.c.name.in_(names)] if names else []
        if since is not None:
            conditions.append(METRICS.c.window_key >= since.key)
        if until is not None:
            conditions.append(METRICS.c.window_key <= until.key)
        with self._database.reading() as connection:
            if newest is not None:
                keys = select(METRICS.c.window_key).where(*conditions).distinct()
                newest_first = keys.order_by(METRICS.c.window_key.desc()).limit(newest)
                conditions.append(METRICS.c.window_key.in_(newest_first))
            rows = connection.execute(
                select(METRICS).where(*conditions).order_by(*METRICS.primary_key)
            )
            return [_metric(row) for row in rows.mappings()]

    def count(self, before: Window) -> int:
        """How many rows there are of the windows before `before`."""
        counted = select(func.count()).select_from(METRICS).where(METRICS.c.window_key < before.key)
        with self._database.reading() as connection:
            return connection.execute(counted).scalar_one()

    def delete(self, before: Window) -> int:
        """Delete the rows of the windows before `before`; how many there were."""
        with self._database.transaction() as connection:
            deleted = connection.execute(delete(METRICS).where(METRICS.c.window_key < before.key))
            return deleted.rowcount

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


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
