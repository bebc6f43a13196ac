"""What the stores in SQL databases have in common: everything that is read, and the queries for it.

A query names its parameters as ``:name``. It is plain SQL that every database understands; what is
particular to one, its connections, transactions and bulk inserts, is in that store's own module.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.frames import captures_frame, labels_frame
from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.capture.rows import (
    CAPTURE_FIELDS,
    WINDOW_MICROSECONDS,
    bounds_of,
    capture_of,
    label_of,
    label_row,
    number_of,
    window_of,
)
from mlschool_dagster.capture.store import Appended, Changes, Revision
from mlschool_dagster.capture.windows import Window

if TYPE_CHECKING:
    import pandas as pd

Row = Sequence[Any]

LABEL_BATCH = 500
"""Labels per transaction: few enough that captures waiting for their turn get it within
milliseconds."""
PAGE = 1000

TRAFFIC = "probe = 0 AND role <> 'shadow'"
"""What counts as traffic. The index over it has this very condition."""
SHADOWS = "probe = 0 AND role = 'shadow'"

_BETWEEN = "captured_at >= :start AND captured_at < :end"
_ANSWER_OF_LABEL = "captures.event_id = labels.event_id AND role <> 'shadow'"


class SqlStore(ABC):
    """A capture store in an SQL database."""

    @abstractmethod
    def append(self, captures: Sequence[Capture]) -> Appended:
        """See `CaptureStore.append`."""

    @abstractmethod
    def close(self) -> None:
        """See `CaptureStore.close`."""

    @abstractmethod
    def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of `query`, whose snapshot is let go before they are returned."""

    @abstractmethod
    def _insert_labels(self, rows: Sequence[Row]) -> int:
        """Keep labels unless they are known; durable on return. How many were new."""

    @abstractmethod
    def _add_refusals(self, rows: Sequence[Row]) -> None:
        """Add rows of window number, reason and count to what is counted; durable on return."""

    def append_labels(self, labels: Iterable[Label]) -> int:
        """See `CaptureStore.append_labels`."""
        rows = map(label_row, labels)
        written = 0
        # The batch is complete before its transaction begins: however slowly `labels` come, nobody
        # waits for them.
        while batch := list(islice(rows, LABEL_BATCH)):
            written += self._insert_labels(batch)
        return written

    def count_refusals(self, window: Window, counts: Mapping[str, int]) -> None:
        """See `CaptureStore.count_refusals`."""
        # In one order, so that two who count the same reasons cannot wait for each other.
        rows = [(number_of(window), reason, counts[reason]) for reason in sorted(counts)]
        if rows:
            self._add_refusals(rows)

    def refusals(self, window: Window) -> dict[str, int]:
        """See `CaptureStore.refusals`."""
        rows = self._fetch(
            "SELECT reason, requests FROM refusals WHERE window_number = :number "
            "ORDER BY requests DESC, reason",
            {"number": number_of(window)},
        )
        return {reason: int(requests) for reason, requests in rows}

    def read(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read`."""
        return self._read(window, TRAFFIC)

    def read_shadow(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read_shadow`."""
        return self._read(window, SHADOWS)

    def read_labels(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read_labels`."""
        rows = self._fetch(
            "SELECT labels.event_id, label, labelled_at, source FROM captures "  # noqa: S608
            f"JOIN labels ON {_ANSWER_OF_LABEL} WHERE {TRAFFIC} AND {_BETWEEN} "
            "ORDER BY captures.sequence, labelled_at, labels.sequence",
            bounds_of(window),
        )
        newest = {row[0]: row for row in rows}
        return labels_frame(map(label_of, newest.values()))

    def unlabelled(self) -> Iterator[Capture]:
        """See `CaptureStore.unlabelled`."""
        ((last,),) = self._fetch("SELECT COALESCE(MAX(sequence), 0) FROM captures", {})
        position = 0
        while position < last:
            # Page by page, each a query of its own: an open snapshot would keep the database from
            # letting go of what is old.
            page = self._fetch(
                f"SELECT {CAPTURE_FIELDS}, sequence FROM captures "  # noqa: S608
                f"WHERE sequence > :position AND sequence <= :last AND {TRAFFIC} AND NOT EXISTS "
                "(SELECT 1 FROM labels WHERE labels.event_id = captures.event_id) "
                "ORDER BY sequence LIMIT :page",
                {"position": position, "last": last, "page": PAGE},
            )
            yield from map(capture_of, page)
            position = page[-1][-1] if len(page) == PAGE else last

    def windows(self) -> dict[Window, int]:
        """See `CaptureStore.windows`."""
        rows = self._fetch(
            f"SELECT captured_at / :length, COUNT(*) FROM captures WHERE {TRAFFIC} "  # noqa: S608
            "GROUP BY 1 ORDER BY 1",
            {"length": WINDOW_MICROSECONDS},
        )
        return {window_of(number): count for number, count in rows}

    def revision(self, window: Window) -> Revision:
        """See `CaptureStore.revision`."""
        identity = self._identity()
        ((captures, last_capture, labels, last_label),) = self._fetch(
            "SELECT COUNT(DISTINCT captures.sequence), MAX(captures.sequence), "  # noqa: S608
            "COUNT(DISTINCT labels.event_id), MAX(labels.sequence) "
            "FROM captures LEFT JOIN labels ON labels.event_id = captures.event_id "
            f"WHERE {TRAFFIC} AND {_BETWEEN}",
            bounds_of(window),
        )
        return Revision(
            captures, _token(identity, last_capture), labels, _token(identity, last_label)
        )

    def captures_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.captures_since`."""
        return self._changes_since(cursor, "captures", "captures")

    def labels_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.labels_since`."""
        return self._changes_since(
            cursor, "labels", f"labels LEFT JOIN captures ON {_ANSWER_OF_LABEL}"
        )

    def _read(self, window: Window, kind: str) -> "pd.DataFrame":
        rows = self._fetch(
            f"SELECT {CAPTURE_FIELDS} FROM captures WHERE {kind} AND {_BETWEEN} "  # noqa: S608
            "ORDER BY sequence",
            bounds_of(window),
        )
        return captures_frame(map(capture_of, rows))

    def _changes_since(self, cursor: str | None, counted: str, table: str) -> Changes:
        identity = self._identity()
        known, _, sequence = (cursor or "").partition("-")
        # A cursor of a store that has since been replaced must not hide what its successor holds.
        position = int(sequence) if known == identity else 0
        rows = self._fetch(
            # A probe, a shadow, or a label whose capture is not known moves the cursor, no window.
            f"SELECT CASE WHEN {TRAFFIC} THEN captured_at / :length END, "  # noqa: S608
            f"MAX({counted}.sequence) FROM {table} "
            f"WHERE {counted}.sequence > :position GROUP BY 1",
            {"length": WINDOW_MICROSECONDS, "position": position},
        )
        return Changes(
            frozenset(window_of(number) for number, _ in rows if number is not None),
            _token(identity, max((sequence for _, sequence in rows), default=position)),
        )

    def _identity(self) -> str:
        # Read before what it is the identity of: were the store replaced in between, the cursor
        # would carry the old one and everything be read again, never skipped.
        ((identity,),) = self._fetch("SELECT identity FROM store", {})
        return str(identity)


def _token(identity: str, sequence: int | None) -> str:
    return f"{identity}-{sequence or 0}"
