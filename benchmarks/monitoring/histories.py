"""Capture stores with as long a history as wanted, filled by SQLite itself."""

import json
import sqlite3
from datetime import datetime
from pathlib import Path

import pandas as pd

from mlschool_dagster.capture.records import CAPTURE_COLUMNS, number_of
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import DataSpec, probability_column

HISTORY_ROWS = 10_000
"""Captures of each hour of a long history."""
HISTORY_HOURS = 100
"""Hours of the shortest history: more than the check of coverage looks at."""
_MICROSECONDS = 3600 * 10**6


def fill_window(
    path: Path, window: Window, reference: pd.DataFrame, spec: DataSpec, rows: int
) -> None:
    """Append `rows` captures of version 1 to `window`, drawn from `reference`, and their labels."""
    templates = [
        (
            number,
            json.dumps(
                {name: None if pd.isna(row[name]) else row[name] for name in spec.input_names}
            ),
            row["prediction"],
            row["confidence"],
            json.dumps({name: row[probability_column(name)] for name in spec.target.classes}),
            row[spec.target.name],
        )
        for number, row in enumerate(reference.to_dict("records"))
    ]
    start = number_of(window) * _MICROSECONDS
    with _filling(path) as connection:
        connection.execute("CREATE TEMP TABLE templates (n INTEGER PRIMARY KEY, i, p, c, s, t)")
        connection.executemany("INSERT INTO templates VALUES (?, ?, ?, ?, ?, ?)", templates)
        drawn = f"JOIN templates ON templates.n = (numbers.n * 7919) % {len(templates)}"
        event = f"printf('{window.key} %08d', numbers.n)"
        _insert(
            connection,
            rows,
            f"captures ({CAPTURE_COLUMNS})",
            f"{event}, {start} + numbers.n * {_MICROSECONDS} / {rows}, '{spec.name}', '1', i, p, "
            f"c, s, 'primary', 1.0, 0 FROM numbers {drawn}",
        )
        labelled = number_of(window) * _MICROSECONDS + 2 * _MICROSECONDS
        _insert(
            connection,
            rows,
            "labels (event_id, label, labelled_at, source)",
            f"{event}, t, {labelled}, 'benchmark' FROM numbers {drawn}",
        )


def fill_history(path: Path, rows: int, newest: datetime) -> None:
    """Append `rows` small captures, in hours up to `newest` of `HISTORY_ROWS` each or fewer."""
    an_hour = min(HISTORY_ROWS, rows // HISTORY_HOURS)
    last = number_of(Window.of(newest))
    with _filling(path) as connection:
        # Indices are made faster than they are kept.
        indices = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'captures'"
        ).fetchall()
        for name, _ in indices:
            connection.execute(f"DROP INDEX {name}")
        hour = f"{last} - ({rows} - numbers.n - 1) / {an_hour}"
        _insert(
            connection,
            rows,
            f"captures ({CAPTURE_COLUMNS})",
            f"printf('old %09d', numbers.n), ({hour}) * {_MICROSECONDS} + numbers.n % 1000, "
            "'e', '1', '{}', 'p', 1.0, '{}', 'primary', 1.0, 0 FROM numbers",
        )
        for _, statement in indices:
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _filling(path: Path) -> sqlite3.Connection:
    open_store(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -500000")
    return connection


def _insert(connection: sqlite3.Connection, rows: int, table: str, values: str) -> None:
    for start in range(0, rows, 10**6):
        numbers = (
            f"WITH RECURSIVE numbers (n) AS (SELECT {start} UNION ALL "  # noqa: S608
            f"SELECT n + 1 FROM numbers WHERE n + 1 < {min(rows, start + 10**6)})"
        )
        connection.execute(f"INSERT INTO {table} {numbers} SELECT {values}")
        connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
