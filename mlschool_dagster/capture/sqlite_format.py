"""What is inside a capture store's SQLite file: its tables, and the statements that fill them."""

import sqlite3
from uuid import uuid4

from mlschool_dagster.capture.queries import SHADOWS, TRAFFIC, WINDOW_NUMBER
from mlschool_dagster.capture.rows import CAPTURE_COLUMNS, CAPTURE_FIELDS, LABEL_COLUMNS

SCHEMA_VERSION = 3
CAPTURE_VALUES = len(CAPTURE_COLUMNS.split(","))
"""How many variables a capture takes in a statement."""

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
_UNIQUE = (
    "CREATE UNIQUE INDEX answers ON captures (event_id) WHERE role <> 'shadow'",
    "CREATE UNIQUE INDEX shadows ON captures (event_id) WHERE role = 'shadow'",
)
# Every index of SQLite ends with the sequence, by which the captures of a window are in order.
_BY_WINDOW = (
    f"CREATE INDEX traffic_by_window ON captures ({WINDOW_NUMBER}) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_window ON captures ({WINDOW_NUMBER}) WHERE {SHADOWS}",
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
    row = f"({', '.join('?' * CAPTURE_VALUES)})"
    return f"INSERT INTO captures ({CAPTURE_COLUMNS}) VALUES {', '.join([row] * rows)}"  # noqa: S608


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file; to be called within a transaction."""
    connection.execute("CREATE TABLE store (identity TEXT NOT NULL)")
    for statement in (_CAPTURES, *_UNIQUE, *_BY_WINDOW, _LABELS, _REFUSALS):
        connection.execute(statement)
    connection.execute("INSERT INTO store VALUES (?)", (uuid4().hex[:8],))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file of an earlier `version` to the present format; to be called in a transaction.

    Sequence numbers stay, so that cursors and tokens do.
    """
    if version == 1:
        _give_roles(connection)
    else:
        connection.execute("DROP INDEX traffic_by_time")
        connection.execute("DROP INDEX shadows_by_time")
    for statement in _BY_WINDOW:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _give_roles(connection: sqlite3.Connection) -> None:
    """Version 1 knew no roles and no sampling: the primary answered, and all was captured."""
    connection.execute("DROP INDEX traffic_by_time")
    connection.execute("ALTER TABLE captures RENAME TO captures_1")
    connection.execute(_CAPTURES)
    before = CAPTURE_FIELDS.removesuffix(", role, sampling_share")
    connection.execute(
        f"INSERT INTO captures (sequence, {CAPTURE_COLUMNS}) "  # noqa: S608
        f"SELECT sequence, {before}, 'primary', 1.0, probe FROM captures_1 ORDER BY sequence"
    )
    connection.execute("DROP TABLE captures_1")
    for statement in (*_UNIQUE, _REFUSALS):
        connection.execute(statement)
