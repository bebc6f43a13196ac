"""Queries that the stores in SQL databases share: everything that is read.

What is particular to one, its connections, transactions and bulk inserts, is in that store's own
module.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.import_log import ImportLog, Row
from mlschool_dagster.capture.records import (
    CAPTURE_FIELDS,
    LABEL_COLUMNS,
    WINDOW_MICROSECONDS,
    Capture,
    Columns,
    Label,
    as_columns,
    capture_of,
    captures_frame,
    columns_frame,
    instant_of,
    label_row,
    labels_frame,
    number_of,
    window_of,
)
from mlschool_dagster.capture.store import Appended, Changes, Revision
from mlschool_dagster.capture.windows import Window

if TYPE_CHECKING:
    import pandas as pd

Fetch = Callable[[str, Mapping[str, Any]], list[Row]]
"""Returns all rows of a query with these parameters."""

PAGE = 1000
"""Captures per query, and per transaction that deletes them.

A query's snapshot keeps the database from letting go of what is old, so that one must be short
however much is read: its pages are queries of their own. As captures never change and the last one
to read is fixed at the start, they amount to one snapshot.
"""
LABEL_BATCH = 500
"""Labels per transaction: few enough that captures waiting for their turn get it within
milliseconds."""
CHUNK = 20 * PAGE
"""Captures per frame of a stream."""
SCAN_LIMIT = 200_000
"""Most sequence numbers that one call of `changes` scans; the rest waits for the next call, so
that a tick stays short even when a long history is new to it."""

_MOST_WINDOWS = 10**9
_ANSWER_OF_LABEL = "captures.event_id = labels.event_id AND role <> 'shadow'"
TRAFFIC = "probe = 0 AND role <> 'shadow'"
"""SQL condition of a capture of traffic. The index over it has this very condition."""
SHADOWS = "probe = 0 AND role = 'shadow'"
WINDOW_NUMBER = f"captured_at / {WINDOW_MICROSECONDS}"
"""The window of a capture. The indices have this very expression."""


def _page(fields: str, kind: str) -> str:
    """The query for the next captures of a window, in their order."""
    return (
        f"SELECT {fields}, sequence FROM captures "  # noqa: S608
        f"WHERE {kind} AND {WINDOW_NUMBER} = :number "
        f"AND sequence > :position AND sequence <= :last ORDER BY sequence LIMIT {PAGE}"
    )


def _page_of(fields: str, kind: str) -> str:
    """A table of the next captures of a window."""
    return f"({_page(fields, kind)}) AS page"


_NEWEST_WINDOWS = (
    # Each step is one index lookup, which neither database would do for a DISTINCT.
    "WITH RECURSIVE newest (number) AS ("  # noqa: S608
    f"SELECT MAX({WINDOW_NUMBER}) FROM captures WHERE {TRAFFIC} UNION ALL "
    f"SELECT (SELECT MAX({WINDOW_NUMBER}) FROM captures "
    f"WHERE {TRAFFIC} AND {WINDOW_NUMBER} < newest.number) "
    "FROM newest WHERE number IS NOT NULL) "
    "SELECT number FROM newest WHERE number IS NOT NULL LIMIT :count"
)
_LABELS = (
    "SELECT labels.event_id, label, labelled_at, source, page.sequence "  # noqa: S608
    f"FROM {_page_of('event_id', TRAFFIC)} "
    "LEFT JOIN labels ON labels.event_id = page.event_id "
    "ORDER BY page.sequence, labelled_at, labels.sequence"
)


class SqlStore(ImportLog):
    """A capture store in an SQL database."""

    @abstractmethod
    def append(self, captures: Sequence[Capture]) -> Appended:
        """See `CaptureStore.append`."""

    @abstractmethod
    def close(self) -> None:
        """See `CaptureStore.close`."""

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

    def stream(self, window: Window) -> "Iterator[pd.DataFrame]":
        """See `CaptureStore.stream`."""
        return self._frames(window, TRAFFIC)

    def stream_columns(self, window: Window, fields: str = CAPTURE_FIELDS) -> Iterator[Columns]:
        """See `CaptureStore.stream_columns`."""
        # Page by page: what a processor has at hand is turned around several times as fast.
        pages = self._pages(_page(fields, TRAFFIC), window, TRAFFIC)
        return (as_columns(page, fields) for page in pages)

    def read(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read`."""
        return _whole(self.stream(window), captures_frame)

    def read_shadow(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read_shadow`."""
        return _whole(self._frames(window, SHADOWS), captures_frame)

    def stream_labels(self, window: Window) -> "Iterator[pd.DataFrame]":
        """See `CaptureStore.stream_labels`."""
        rows = chain.from_iterable(self._newest_of_each(_LABELS, window))
        return (columns_frame(as_columns(chunk, LABEL_COLUMNS)) for chunk in _chunks(rows))

    def stream_label_columns(self, window: Window) -> Iterator[Columns]:
        """See `CaptureStore.stream_label_columns`."""
        pages = self._newest_of_each(_LABELS, window)
        return (as_columns(page, LABEL_COLUMNS) for page in pages if page)

    def read_labels(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read_labels`."""
        return _whole(self.stream_labels(window), labels_frame)

    def unlabelled(self) -> Iterator[Capture]:
        """See `CaptureStore.unlabelled`."""
        first, last = self._span("captures", "TRUE")
        for position in range(first - 1, last, PAGE):
            yield from map(
                capture_of,
                self._fetch(
                    f"SELECT {CAPTURE_FIELDS} FROM captures "  # noqa: S608
                    f"WHERE sequence > :position AND sequence <= :until AND {TRAFFIC} "
                    "AND NOT EXISTS "
                    "(SELECT 1 FROM labels WHERE labels.event_id = captures.event_id) "
                    "ORDER BY sequence",
                    {"position": position, "until": min(position + PAGE, last)},
                ),
            )

    def windows(self) -> dict[Window, int]:
        """See `CaptureStore.windows`."""
        rows = self._fetch(
            f"SELECT {WINDOW_NUMBER}, COUNT(*) FROM captures WHERE {TRAFFIC} "  # noqa: S608
            "GROUP BY 1 ORDER BY 1",
            {},
        )
        return {window_of(number): count for number, count in rows}

    def newest_windows(self, count: int | None = None) -> list[Window]:
        """See `CaptureStore.newest_windows`."""
        rows = self._fetch(
            _NEWEST_WINDOWS,
            {"count": _MOST_WINDOWS if count is None else count},
        )
        return [window_of(number) for (number,) in rows]

    def count(self, window: Window) -> int:
        """See `CaptureStore.count`."""
        ((captures,),) = self._fetch(
            f"SELECT COUNT(*) FROM captures WHERE {TRAFFIC} AND {WINDOW_NUMBER} = :number",  # noqa: S608
            {"number": number_of(window)},
        )
        return int(captures)

    def last_captured(self, window: Window) -> datetime | None:
        """See `CaptureStore.last_captured`."""
        ((last,),) = self._fetch(
            f"SELECT MAX(captured_at) FROM captures WHERE {TRAFFIC} AND {WINDOW_NUMBER} = :number",  # noqa: S608
            {"number": number_of(window)},
        )
        return None if last is None else instant_of(last)

    def delete(self, window: Window) -> int:
        """See `CaptureStore.delete`."""
        number = number_of(window)
        self._change(["DELETE FROM refusals WHERE window_number = :number"], {"number": number})
        self._delete(window, SHADOWS)
        return self._delete(window, TRAFFIC)

    def revision(self, window: Window) -> Revision:
        """See `CaptureStore.revision`."""
        identity = self._identity()
        query = (
            "SELECT COUNT(DISTINCT page.sequence), COUNT(DISTINCT labels.event_id), "  # noqa: S608
            f"MAX(labels.sequence), MAX(page.sequence) FROM {_page_of('event_id', TRAFFIC)} "
            "LEFT JOIN labels ON labels.event_id = page.event_id"
        )
        captures = labels = last_label = last_capture = 0
        for ((in_page, labelled, label, last),) in self._pages(query, window, TRAFFIC):
            captures += in_page
            labels += labelled
            last_label = max(last_label, label or 0)
            last_capture = last
        return Revision(
            captures, _token(identity, last_capture), labels, _token(identity, last_label)
        )

    def captures_token(self, window: Window) -> str:
        """See `CaptureStore.captures_token`."""
        identity = self._identity()
        return _token(identity, self._window_span(window, TRAFFIC)[1])

    def labels_token(self, window: Window) -> str:
        """See `CaptureStore.labels_token`."""
        return self.revision(window).labels_token

    def captures_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.captures_since`."""
        return self._changes_since(cursor, "captures", "captures")

    def labels_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.labels_since`."""
        return self._changes_since(
            cursor, "labels", f"labels LEFT JOIN captures ON {_ANSWER_OF_LABEL}"
        )

    def _delete(self, window: Window, kind: str) -> int:
        page = f"(SELECT sequence FROM {_page_of('event_id', kind)})"  # noqa: S608
        events = f"(SELECT event_id FROM {_page_of('event_id', kind)})"  # noqa: S608
        statements = [f"DELETE FROM captures WHERE sequence IN {page}"]  # noqa: S608
        if kind is TRAFFIC:
            statements.insert(0, f"DELETE FROM labels WHERE event_id IN {events}")  # noqa: S608
        first, last = self._window_span(window, kind)
        parameters = {"number": number_of(window), "position": first - 1, "last": last}
        forgotten = 0
        while gone := self._change(statements, parameters):
            forgotten += gone
        return forgotten

    def _frames(self, window: Window, kind: str) -> "Iterator[pd.DataFrame]":
        pages = self._pages(_page(CAPTURE_FIELDS, kind), window, kind)
        rows = chain.from_iterable(pages)
        return (columns_frame(as_columns(chunk, CAPTURE_FIELDS)) for chunk in _chunks(rows))

    def _newest_of_each(self, query: str, window: Window) -> Iterator[list[Row]]:
        """The pages of `query` (see `_pages`) with the last row alone of each event.

        The event is in the first field.

        A page holds all labels of its captures.
        """
        for page in self._pages(query, window, TRAFFIC):
            yield list({row[0]: row for row in page if row[0] is not None}.values())

    def _pages(self, query: str, window: Window, kind: str) -> Iterator[list[Row]]:
        """The rows of `query`, which reads a `_page_of` and ends each row with its `sequence`."""
        first, last = self._window_span(window, kind)
        position = first - 1
        with self._reading() as fetch:
            while position < last:
                page = fetch(
                    query, {"number": number_of(window), "position": position, "last": last}
                )
                if not page or page[-1][-1] is None:
                    # What was left has been deleted meanwhile.
                    return
                yield page
                position = page[-1][-1]

    @contextmanager
    def _reading(self) -> Iterator[Fetch]:
        """`_fetch` for the queries of one stream."""
        yield self._fetch

    def _window_span(self, window: Window, kind: str) -> tuple[int, int]:
        return self._span("captures", f"{kind} AND {WINDOW_NUMBER} = {number_of(window)}")

    def _span(self, table: str, condition: str) -> tuple[int, int]:
        """The first and the last sequence number in `table`; (1, 0) if there are none."""
        lowest, highest = (
            f"(SELECT {end}(sequence) FROM {table} WHERE {condition})"  # noqa: S608
            for end in ("MIN", "MAX")
        )
        ((first, last),) = self._fetch(f"SELECT COALESCE({lowest}, 1), COALESCE({highest}, 0)", {})
        return first, last

    def _changes_since(self, cursor: str | None, counted: str, table: str) -> Changes:
        identity = self._identity()
        known, _, sequence = (cursor or "").partition("-")
        # A cursor of a store that has since been replaced must not hide what its successor holds.
        position = int(sequence) if known == identity else 0
        first, last = self._span(counted, "TRUE")
        start = max(position, first - 1)
        until = max(min(start + SCAN_LIMIT, last), position)
        rows = self._fetch(
            # A probe, a shadow, or a label whose capture is not known moves the cursor alone.
            f"SELECT DISTINCT CASE WHEN {TRAFFIC} THEN {WINDOW_NUMBER} END "  # noqa: S608
            f"FROM {table} WHERE {counted}.sequence > :position AND {counted}.sequence <= :until",
            {"position": start, "until": until},
        )
        windows = frozenset(window_of(number) for (number,) in rows if number is not None)
        return Changes(windows, _token(identity, until))

    def _identity(self) -> str:
        # Read before what it is the identity of: were the store replaced in between, the cursor
        # would carry the old one and everything be read again, never skipped.
        ((identity,),) = self._fetch("SELECT identity FROM store", {})
        return str(identity)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _whole(
    frames: "Iterator[pd.DataFrame]", frame: "Callable[[Sequence[Any]], pd.DataFrame]"
) -> "pd.DataFrame":
    """All `frames` as one, or an empty `frame`."""
    import pandas as pd

    chunks = list(frames)
    return pd.concat(chunks, ignore_index=True) if chunks else frame([])


def _token(identity: str, sequence: int) -> str:
    return f"{identity}-{sequence}"
