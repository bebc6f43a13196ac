"""What is inside a capture store in PostgreSQL: its tables, and the statements that fill them.

Rows come as one JSON parameter, so that a statement is one round trip however many rows there are.
Each of the kinds of rows with a sequence has an advisory lock, taken before a number is drawn and
held until the transaction's end: numbers become visible in their order, and a cursor skips nothing.
"""

from uuid import uuid4

from mlschool_dagster.capture.queries import SHADOWS, TRAFFIC, WINDOW_NUMBER
from mlschool_dagster.capture.rows import CAPTURE_COLUMNS, CAPTURE_FIELDS, LABEL_COLUMNS

SCHEMA_VERSION = 3

# The first key of all locks is this package's own: others may lock in the same database.
_LOCKS = 1_836_280_931
_SCHEMA_LOCK, _CAPTURES_LOCK, _LABELS_LOCK = 0, 1, 2

LOCK_SCHEMA = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_SCHEMA_LOCK})"
LOCK_CAPTURES = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_CAPTURES_LOCK})"
_LOCK_LABELS = f"SELECT pg_advisory_xact_lock({_LOCKS}, {_LABELS_LOCK})"

_BY_WINDOW = (
    f"CREATE INDEX traffic_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {TRAFFIC}",
    f"CREATE INDEX shadows_by_window ON captures (({WINDOW_NUMBER}), sequence) WHERE {SHADOWS}",
)
SCHEMA = (
    "CREATE TABLE store (identity TEXT NOT NULL, version INTEGER NOT NULL)",
    """CREATE TABLE captures (
        sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id TEXT NOT NULL,
        captured_at BIGINT NOT NULL,
        endpoint TEXT NOT NULL,
        model_version TEXT NOT NULL,
        inputs TEXT NOT NULL,
        prediction TEXT NOT NULL,
        confidence DOUBLE PRECISION NOT NULL,
        probabilities TEXT NOT NULL,
        role TEXT NOT NULL,
        sampling_share DOUBLE PRECISION NOT NULL,
        probe SMALLINT NOT NULL
    )""",
    "COMMENT ON COLUMN captures.captured_at IS 'microseconds since 1970-01-01, UTC'",
    "CREATE UNIQUE INDEX answers ON captures (event_id) WHERE role <> 'shadow'",
    "CREATE UNIQUE INDEX shadows ON captures (event_id) WHERE role = 'shadow'",
    *_BY_WINDOW,
    """CREATE TABLE labels (
        sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id TEXT NOT NULL,
        label TEXT NOT NULL,
        labelled_at BIGINT NOT NULL,
        source TEXT NOT NULL,
        UNIQUE (event_id, labelled_at, label, source)
    )""",
    "COMMENT ON COLUMN labels.labelled_at IS 'microseconds since 1970-01-01, UTC'",
    """CREATE TABLE refusals (
        window_number BIGINT NOT NULL,
        reason TEXT NOT NULL,
        requests BIGINT NOT NULL,
        PRIMARY KEY (window_number, reason)
    )""",
    "COMMENT ON COLUMN refusals.window_number IS 'hours since 1970-01-01, UTC'",
)
RIGHTS_OF_WRITER = (
    "GRANT SELECT ON store TO {writer}",
    "GRANT SELECT, INSERT ON captures, refusals TO {writer}",
    # Requests are added to the count there is.
    "GRANT UPDATE (requests) ON refusals TO {writer}",
)
"""What a server needs of its store: no captures are changed or deleted, and no labels seen."""
MAY_WRITE = "SELECT has_table_privilege(%s, 'captures', 'INSERT')"
INSERT_STORE = "INSERT INTO store VALUES (%s, %s)"
# Not to_regclass(): that answers from a cache which waiting for a lock does not renew.
HAS_SCHEMA = (
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables "
    "WHERE schemaname = current_schema() AND tablename = 'store')"
)
VERSION = "SELECT version FROM store"
FROM_VERSION_2 = (
    # Whoever appends waits until the indices are there.
    "SET LOCAL statement_timeout = 0",
    "DROP INDEX traffic_by_time",
    "DROP INDEX shadows_by_time",
    *_BY_WINDOW,
    f"UPDATE store SET version = {SCHEMA_VERSION}",  # noqa: S608
)


def new_identity() -> str:
    """What tells this store from every other one."""
    return uuid4().hex[:8]


def _insert(table: str, columns: str, types: str, lock: str) -> str:
    """Insert rows, given as a JSON array of arrays, in their order and under `lock`."""
    values = ", ".join(
        f"(item ->> {position})::{type_}" for position, type_ in enumerate(types.split(", "))
    )
    return (
        f"WITH turn AS MATERIALIZED ({lock}) "  # noqa: S608
        f"INSERT INTO {table} ({columns}) SELECT {values} "
        "FROM turn, json_array_elements(%s::json) WITH ORDINALITY AS items (item, position) "
        "ORDER BY position"
    )


INSERT_CAPTURES = _insert(
    "captures",
    CAPTURE_COLUMNS,
    "text, bigint, text, text, text, text, float8, text, text, float8, smallint",
    LOCK_CAPTURES,
)
INSERT_LABELS = (
    _insert("labels", LABEL_COLUMNS, "text, text, bigint, text", _LOCK_LABELS)
    + " ON CONFLICT DO NOTHING"
)
ADD_REFUSALS = (
    _insert("refusals", "window_number, reason, requests", "bigint, text, bigint", "SELECT 1")
    + " ON CONFLICT (window_number, reason) "
    "DO UPDATE SET requests = refusals.requests + excluded.requests"
)
KNOWN_CAPTURES = f"SELECT {CAPTURE_FIELDS} FROM captures WHERE event_id = ANY(%s)"  # noqa: S608
