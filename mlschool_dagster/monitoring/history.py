"""The history of metrics as one table: a row per window, metric, column, segment and version."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    delete,
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
    Column("name", String(64), primary_key=True),
    Column("column_name", String(256), primary_key=True),
    Column("segment", String(256), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("report", String(64), nullable=False),
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
        with self._database.transaction() as connection:
            if newest is not None:
                keys = select(METRICS.c.window_key).where(*wanted).distinct()
                newest_first = keys.order_by(METRICS.c.window_key.desc()).limit(newest)
                wanted.append(METRICS.c.window_key.in_(newest_first))
            rows = connection.execute(select(METRICS).where(*wanted).order_by(*METRICS.primary_key))
            return [_metric(dict(row)) for row in rows.mappings()]

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
    fields = asdict(metric)
    window, column = fields.pop("window"), fields.pop("column")
    del window
    return {**fields, "window_key": metric.window.key, "column_name": column}


def _metric(row: dict[str, object]) -> Metric:
    fields = {name: value for name, value in row.items() if name != "report"}
    window = Window.from_key(str(fields.pop("window_key")))
    name = MetricName(str(fields.pop("name")))
    column = str(fields.pop("column_name"))
    return Metric(window=window, name=name, column=column, **fields)  # type: ignore[arg-type]
