"""Captures and labels in one SQLite file: the embedded default.

The file is in WAL mode with full synchronisation, so that readers never block the writer, and a
commit that returned survives a crash of the machine. SQLite lets one writer in at a time and
numbers rows inside its transaction; hence sequence numbers become visible in order, and a cursor
over them never skips a row.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import orjson

from mlschool_dagster.capture.frames import captures_frame, labels_frame
from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.capture.sqlite_format import (
    CAPTURE_FIELDS,
    INSERT_CAPTURE,
    SCHEMA,
    SCHEMA_VERSION,
    WINDOW_MICROSECONDS,
    bounds_of,
    capture_of,
    capture_row,
    label_of,
    label_row,
    window_of,
)
from mlschool_dagster.capture.store import Changes, Revision
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.values import InputValue

if TYPE_CHECKING:
    import pandas as pd

BUSY_SECONDS = 30.0
LABEL_BATCH = 500
"""Labels per transaction: few enough that captures waiting for the write lock get it within
milliseconds."""
PAGE = 1000

_IN_WINDOW = "probe = 0 AND captured_at >= :start AND captured_at < :end"


class SqliteStore:
    """A capture store in the SQLite file at `path`, created with its folder if it does not exist.

    Usable from several threads and processes at once. Writing goes through one connection; each
    read opens its own, so that none waits for another.

    Raises:
        UserError: the file cannot be opened, is no capture store, or a newer release wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._writing = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect("rwc")
            _enter_wal(self._connection)
            self._identity = self._create_schema()
        except OSError as error:
            raise UserError(
                f"The folder of the capture store {path} cannot be created ({error.strerror}); "
                "choose another place or mend its permissions."
            ) from None
        except sqlite3.Error as error:
            raise UserError(
                f"The capture store {path} cannot be opened ({error}); check that it is a capture "
                "store, that you may write to it, and that its disk has room."
            ) from None

    def append(self, captures: Sequence[Capture]) -> frozenset[str]:
        """See `CaptureStore.append`."""
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(INSERT_CAPTURE, map(capture_row, captures))
            if connection.total_changes - before == len(captures):
                return frozenset()
            refused = frozenset(
                capture.event_id
                for capture in captures
                if _inputs_of(connection, capture.event_id) != capture.inputs
            )
            if refused:
                connection.rollback()
            return refused

    def append_labels(self, labels: Iterable[Label]) -> int:
        """See `CaptureStore.append_labels`."""
        rows = map(label_row, labels)
        written = 0
        # The batch is complete before the transaction begins: however slowly `labels` come, the
        # write lock is held for milliseconds.
        while batch := list(islice(rows, LABEL_BATCH)):
            with self._transaction() as connection:
                written += connection.executemany(
                    "INSERT INTO labels (event_id, label, labelled_at, source) "
                    "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    batch,
                ).rowcount
        return written

    def read(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read`."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {CAPTURE_FIELDS} FROM captures WHERE {_IN_WINDOW} ORDER BY sequence",  # noqa: S608
                bounds_of(window),
            )
            return captures_frame(map(capture_of, rows))

    def read_labels(self, window: Window) -> "pd.DataFrame":
        """See `CaptureStore.read_labels`."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT captures.event_id, label, labelled_at, source FROM captures "  # noqa: S608
                "JOIN labels ON labels.sequence = ("
                "  SELECT sequence FROM labels WHERE event_id = captures.event_id"
                "  ORDER BY labelled_at DESC, sequence DESC LIMIT 1) "
                f"WHERE {_IN_WINDOW} ORDER BY captures.sequence",
                bounds_of(window),
            )
            return labels_frame(map(label_of, rows))

    def unlabelled(self) -> Iterator[Capture]:
        """See `CaptureStore.unlabelled`."""
        position, last = 0, self._last_sequence()
        while position < last:
            # Page by page, each a statement of its own: an open read would keep the WAL growing.
            with self._reading() as connection:
                page = connection.execute(
                    f"SELECT {CAPTURE_FIELDS}, sequence FROM captures "  # noqa: S608
                    "WHERE sequence > ? AND sequence <= ? AND probe = 0 AND NOT EXISTS "
                    "(SELECT 1 FROM labels WHERE labels.event_id = captures.event_id) "
                    "ORDER BY sequence LIMIT ?",
                    (position, last, PAGE),
                ).fetchall()
            yield from map(capture_of, page)
            position = page[-1][-1] if len(page) == PAGE else last

    def windows(self) -> dict[Window, int]:
        """See `CaptureStore.windows`."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT captured_at / ?, COUNT(*) FROM captures WHERE probe = 0 "
                "GROUP BY 1 ORDER BY 1",
                (WINDOW_MICROSECONDS,),
            )
            return {window_of(number): count for number, count in rows}

    def revision(self, window: Window) -> Revision:
        """See `CaptureStore.revision`."""
        with self._reading() as connection:
            captures, last_capture, labels, last_label = connection.execute(
                "SELECT COUNT(DISTINCT captures.sequence), MAX(captures.sequence), "  # noqa: S608
                "COUNT(DISTINCT labels.event_id), MAX(labels.sequence) "
                f"FROM captures LEFT JOIN labels USING (event_id) WHERE {_IN_WINDOW}",
                bounds_of(window),
            ).fetchone()
        return Revision(captures, self._token(last_capture), labels, self._token(last_label))

    def captures_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.captures_since`."""
        return self._changes_since(cursor, "captures")

    def labels_since(self, cursor: str | None) -> Changes:
        """See `CaptureStore.labels_since`."""
        return self._changes_since(cursor, "labels LEFT JOIN captures USING (event_id)")

    def close(self) -> None:
        """See `CaptureStore.close`."""
        with self._writing:
            self._connection.close()

    def _changes_since(self, cursor: str | None, table: str) -> Changes:
        position = self._position(cursor)
        counted = table.split()[0]
        with self._reading() as connection:
            rows = connection.execute(
                # A probe, or a label whose capture is not known, moves the cursor but no window.
                f"SELECT IIF(probe = 0, captured_at / ?, NULL), MAX({counted}.sequence) "  # noqa: S608
                f"FROM {table} WHERE {counted}.sequence > ? GROUP BY 1",
                (WINDOW_MICROSECONDS, position),
            ).fetchall()
        return Changes(
            frozenset(window_of(number) for number, _ in rows if number is not None),
            self._token(max((sequence for _, sequence in rows), default=position)),
        )

    def _last_sequence(self) -> int:
        with self._reading() as connection:
            return int(
                connection.execute("SELECT COALESCE(MAX(sequence), 0) FROM captures").fetchone()[0]
            )

    def _token(self, sequence: int | None) -> str:
        return f"{self._identity}-{sequence or 0}"

    def _position(self, cursor: str | None) -> int:
        # A cursor of a file that has since been deleted must not hide what its successor holds.
        identity, _, sequence = (cursor or "").partition("-")
        return int(sequence) if identity == self._identity else 0

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not self._path.exists():
            raise UserError(
                f"The capture store {self._path} is gone; stop what uses it, or put it back."
            )
        with closing(self._connect("rw")) as connection:
            yield connection

    def _create_schema(self) -> str:
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO store VALUES (?)", (uuid4().hex[:8],))
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise UserError(
                    f"The capture store {self._path} has the format {version}, this release writes "
                    f"{SCHEMA_VERSION}; use the release that wrote it or another file."
                )
            (identity,) = connection.execute("SELECT identity FROM store").fetchone()
            return str(identity)


def _enter_wal(connection: sqlite3.Connection) -> None:
    # Entering WAL needs the file alone, and SQLite does not wait for that even with a busy timeout.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _inputs_of(connection: sqlite3.Connection, event_id: str) -> dict[str, InputValue]:
    (text,) = connection.execute(
        "SELECT inputs FROM captures WHERE event_id = ?", (event_id,)
    ).fetchone()
    inputs: dict[str, InputValue] = orjson.loads(text)
    return inputs
