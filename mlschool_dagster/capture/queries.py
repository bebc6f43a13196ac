"""What the stores in SQL databases ask for: plain SQL that every database understands.

A query names its parameters as ``:name``.
"""

from mlschool_dagster.capture.rows import ANSWER_FIELDS, SHADOW_FIELDS, WINDOW_MICROSECONDS

PAGE = 1000
"""Captures per query, and per transaction that deletes them.

A query's snapshot keeps the database from letting go of what is old, so that one must be short
however much is read: its pages are queries of their own. As captures never change and the last one
to read is fixed at the start, they amount to one snapshot.
"""

TRAFFIC = "probe = 0 AND role <> 'shadow'"
"""What counts as traffic. The index over it has this very condition."""
SHADOWS = "probe = 0 AND role = 'shadow'"
WINDOW_NUMBER = f"captured_at / {WINDOW_MICROSECONDS}"
"""The window of a capture. The indices have this very expression."""


def page_of(fields: str, kind: str) -> str:
    """A table of the next captures of a window."""
    return (
        f"(SELECT {fields}, sequence FROM captures "  # noqa: S608
        f"WHERE {kind} AND {WINDOW_NUMBER} = :number "
        f"AND sequence > :position AND sequence <= :last ORDER BY sequence LIMIT {PAGE}) AS page"
    )


def _of(table: str, fields: str) -> str:
    return ", ".join(f"{table}.{field}" for field in fields.split(", "))


NEWEST_WINDOWS = (
    # Each step is one look into the index, which neither database would do for a DISTINCT.
    "WITH RECURSIVE newest (number) AS ("  # noqa: S608
    f"SELECT MAX({WINDOW_NUMBER}) FROM captures WHERE {TRAFFIC} UNION ALL "
    f"SELECT (SELECT MAX({WINDOW_NUMBER}) FROM captures "
    f"WHERE {TRAFFIC} AND {WINDOW_NUMBER} < newest.number) "
    "FROM newest WHERE number IS NOT NULL) "
    "SELECT number FROM newest WHERE number IS NOT NULL LIMIT :count"
)
LABELS = (
    "SELECT labels.event_id, label, labelled_at, source, page.sequence "  # noqa: S608
    f"FROM {page_of('event_id', TRAFFIC)} "
    "LEFT JOIN labels ON labels.event_id = page.event_id "
    "ORDER BY page.sequence, labelled_at, labels.sequence"
)
ANSWERS = (
    f"SELECT {_of('page', ANSWER_FIELDS)}, {_of('beside', SHADOW_FIELDS)}, label, "  # noqa: S608
    f"page.sequence FROM {page_of(ANSWER_FIELDS, TRAFFIC)} "
    "LEFT JOIN captures AS beside "
    "ON beside.event_id = page.event_id AND beside.role = 'shadow' "
    "LEFT JOIN labels ON labels.event_id = page.event_id "
    "ORDER BY page.sequence, labelled_at, labels.sequence"
)
