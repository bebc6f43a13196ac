"""What is inside a capture store's SQLite file: its tables, and the statements that fill them."""

import sqlite3
from uuid import uuid4

from mlschool_dagster.capture.rows import CAPTURE_COLUMNS, CAPTURE_FIELDS, LABEL_COLUMNS
from mlschool_dagster.capture.sql import SHADOWS, TRAFFIC

SCHEMA_VERSION = 2

_CAPTURES = """CREATE TABLE captures (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    captured_at INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    model_version TEXT NOT NULL,
    inputs TEXT NOT NULL,
    prediction TEXT NOT NULL,
    confidence REAL NOT NULL,
    probabilities TEXT NOT NULL,
    role TEXT NOT NULL,
    sampling_share REAL NOT NULL,
    probe INTEGER NOT NULL
)"""
_INDICES = (
    "CREATE UNIQUE INDEX answers ON captures (event_id) WHERE role <> 'shadow'",
    "CREATE UNIQUE INDEX shadows ON captures (event_id) WHERE role = 'shadow'",
    f"CREATE INDEX traffic_by_time ON captures (captured_at) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_time ON captures (captured_at) WHERE {SHADOWS}",
)
_REFUSALS = """CREATE TABLE refusals (
    window_number INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (window_number, reason)
) WITHOUT ROWID"""
# The unique constraint makes writing the same label again harmless, and finds an event's labels.
_LABELS = """CREATE TABLE labels (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    label TEXT NOT NULL,
    labelled_at INTEGER NOT NULL,
    source TEXT NOT NULL,
    UNIQUE (event_id, labelled_at, label, source)
)"""

INSERT_LABEL = f"INSERT INTO labels ({LABEL_COLUMNS}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
ADD_REFUSALS = (
    "INSERT INTO refusals (window_number, reason, requests) VALUES (?, ?, ?) "
    "ON CONFLICT (window_number, reason) DO UPDATE SET requests = requests + excluded.requests"
)


def insert_captures(rows: int) -> str:
    """The statement that inserts `rows` captures, all or none of them."""
    row = f"({', '.join('?' * len(CAPTURE_COLUMNS.split(',')))})"
    return f"INSERT INTO captures ({CAPTURE_COLUMNS}) VALUES {', '.join([row] * rows)}"  # noqa: S608


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file; to be called within a transaction."""
    connection.execute("CREATE TABLE store (identity TEXT NOT NULL)")
    for statement in (_CAPTURES, *_INDICES, _LABELS, _REFUSALS):
        connection.execute(statement)
    connection.execute("INSERT INTO store VALUES (?)", (uuid4().hex[:8],))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def migrate_from_1(connection: sqlite3.Connection) -> None:
    """Bring a file of version 1 to the present format; to be called within a transaction.

    Version 1 knew neither roles nor sampling: everything was answered by the primary and captured.
    Sequence numbers stay, so that cursors and tokens do.
    """
    connection.execute("DROP INDEX traffic_by_time")
    connection.execute("ALTER TABLE captures RENAME TO captures_1")
    connection.execute(_CAPTURES)
    before = CAPTURE_FIELDS.removesuffix(", role, sampling_share")
    connection.execute(
        f"INSERT INTO captures (sequence, {CAPTURE_COLUMNS}) "  # noqa: S608
        f"SELECT sequence, {before}, 'primary', 1.0, probe FROM captures_1 ORDER BY sequence"
    )
    connection.execute("DROP TABLE captures_1")
    for statement in (*_INDICES, _REFUSALS):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
