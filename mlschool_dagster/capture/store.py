"""Interface of capture stores, and opening one by URI."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlschool_dagster.capture.records import CAPTURE_FIELDS, Capture, Label
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.capture.import_log import ImportBatch, Imported, ImportFault, Unread
    from mlschool_dagster.capture.records import Columns
    from mlschool_dagster.capture.sources import StoredObject


@dataclass(frozen=True, slots=True)
class Changes:
    """Windows with new data since a cursor, and the cursor for the next call.

    The cursor is opaque to callers: a sequence number for a database, a listing's position for an
    object store. After a long history one call may cover only part of it; the next calls
    return the rest.
    """

    windows: frozenset[Window]
    cursor: str


@dataclass(frozen=True, slots=True)
class Revision:
    """The state of one window: its row counts, and a token for each that changes when rows land.

    Probes (`SMOKE_TEST_PREFIX`) are not counted.
    """

    captures: int
    captures_token: str
    labels: int
    labels_token: str


class StoreUnavailableError(UserError):
    """The store cannot be reached, is locked for too long or has no room; it may be back later."""


class InvalidCaptureError(Exception):
    """The store is there and will never take these captures, because of what is in them."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Result of an append: the captures whose event ids were known already.

    ``duplicates`` holds, by event id, what was kept before with the same inputs. ``conflicts`` are
    the event ids of requests whose id belongs to a request with other rows; if there is one,
    nothing was kept.
    """

    duplicates: Mapping[str, Capture]
    conflicts: frozenset[str]


class CaptureSink(Protocol):
    """Part of a capture store that a server uses: append captures and count refusals."""

    def append(self, captures: Sequence[Capture]) -> Appended:
        """Keep all of `captures` or none of them; durable on return.

        A request (see `idempotency`) that is known with exactly the same rows is a duplicate and
        changes nothing; with any others it is a conflict.
        A shadow's capture has an event id of its own kind: it neither duplicates nor conflicts with
        another role's, and the first one counts.

        None at all finds out whether the store can be written.

        Raises:
            StoreUnavailableError: nothing is known to be kept. Appending the same again is
                harmless.
            InvalidCaptureError: nothing was kept, and never will be.
        """

    def count_refusals(self, window: Window, counts: Mapping[str, int]) -> None:
        """Add to the counts of refused requests of `window`, by reason; durable on return."""

    def close(self) -> None:
        """Let go of the store's connections."""


class NoCaptures:
    """A sink that keeps nothing: captures are off, or made by a gateway."""

    def append(self, captures: Sequence[Capture]) -> Appended:
        """Keep nothing, and know of no duplicates."""
        return Appended({}, frozenset())

    def count_refusals(self, window: Window, counts: Mapping[str, int]) -> None:
        """Count nothing."""

    def close(self) -> None:
        """Hold nothing."""


class CaptureStore(CaptureSink, Protocol):
    """A durable store of captures and labels, safe for many threads and processes at once.

    Reading never blocks appending. Probes are kept but left out of everything that is read here;
    so are shadows, but for `read_shadow`. Cursors and tokens belong to one store: one that replaces
    it is read from its beginning. Every method raises `StoreUnavailableError` while the store
    cannot be used.
    """

    def refusals(self, window: Window) -> dict[str, int]:
        """How many requests were refused in `window`, by reason, most frequent first."""

    def append_labels(self, labels: Iterable[Label]) -> int:
        """Keep `labels` in bounded batches; durable on return.

        A label may come before its capture. The very same label again changes nothing.

        Returns:
            How many were written.
        """

    def stream(self, window: Window) -> "Iterator[pd.DataFrame]":
        """The window's captures in order of arrival, in frames of bounded size; none without any.

        Captures that land while it is read are left for the next time.

        Columns: ``event_id``, ``captured_at`` (datetime64, UTC), ``endpoint``, ``model_version``,
        ``inputs`` (dict), ``prediction``, ``confidence``, ``probabilities`` (dict), ``role``,
        ``sampling_share``.
        """

    def stream_columns(self, window: Window, fields: str = CAPTURE_FIELDS) -> "Iterator[Columns]":
        """The rows of `stream`, column by column as stored, for reading many rows.

        `fields` are some of `CAPTURE_FIELDS`, with a comma and a space between.
        """

    def read(self, window: Window) -> "pd.DataFrame":
        """All that `stream` gives, as one frame."""

    def read_shadow(self, window: Window) -> "pd.DataFrame":
        """The shadows' captures of the window, shaped like those of `read`."""

    def stream_labels(self, window: Window) -> "Iterator[pd.DataFrame]":
        """The newest label (by ``labelled_at``) of each of the window's captures that has one.

        In the order and in frames of the kind that `stream` gives. Columns: ``event_id``,
        ``label``, ``labelled_at`` (datetime64, UTC), ``source``.
        """

    def stream_label_columns(self, window: Window) -> "Iterator[Columns]":
        """The rows of `stream_labels`, column by column as stored."""

    def read_labels(self, window: Window) -> "pd.DataFrame":
        """All that `stream_labels` gives, as one frame."""

    def unlabelled(self) -> Iterator[Capture]:
        """Every capture without a label, in order of arrival, streamed in bounded memory.

        Captures that land while it is read are left for the next time.
        """

    def windows(self) -> dict[Window, int]:
        """Every window with captures and how many it holds, oldest first."""

    def newest_windows(self, count: int | None = None) -> list[Window]:
        """At most `count` windows with captures, newest first; reads no others."""

    def revision(self, window: Window) -> Revision:
        """The present state of `window`; reads each of its captures."""

    def captures_token(self, window: Window) -> str:
        """The token of the captures in `revision`; reads none of them."""

    def labels_token(self, window: Window) -> str:
        """The token of the labels in `revision`."""

    def captures_since(self, cursor: str | None) -> Changes:
        """Windows in which captures landed after `cursor` (None: since the beginning)."""

    def labels_since(self, cursor: str | None) -> Changes:
        """Windows whose captures were labelled after `cursor` (None: since the beginning)."""

    def count(self, window: Window) -> int:
        """How many captures the window holds."""

    def last_captured(self, window: Window) -> datetime | None:
        """When the last of the window's captures was made, None without any."""

    def delete(self, window: Window) -> int:
        """Delete the window's captures with their labels and shadows, and its refusals.

        It goes in small batches, between which others write, the oldest captures first: if it ends
        midway, what is left has the same token as before.

        Returns:
            How many captures there were.
        """

    def read_objects(self, source: str, folder: str) -> Iterator[tuple[str, str]]:
        """Name and version of each object in `folder` of `source` that has been read, streamed."""

    def unread(self, source: str, folder: str, items: "Sequence[StoredObject]") -> "list[Unread]":
        """Those of `items`, all in one `folder`, that are new or have changed since."""

    def append_import(self, source: str, batch: "ImportBatch", now: datetime) -> "Imported":
        """Keep a batch and the positions after it, all or nothing; durable on return.

        A capture whose event id is known with the same inputs is a duplicate and changes nothing;
        with others it is a conflict, which becomes a fault.

        Raises:
            PositionMovedError: another import has read on; nothing was kept.
            InvalidCaptureError: a row can never be kept; nothing was kept.
        """

    def swept(self, source: str) -> str:
        """The folder of `source` up to which old folders were scanned; empty: none."""

    def set_swept(self, source: str, folder: str) -> None:
        """Record what `swept` gives from now on."""

    def import_faults(
        self, source: str, since: datetime, count: int
    ) -> "tuple[int, list[ImportFault]]":
        """How many lines of `source` were unreadable since then, and the newest."""

    def imported_objects(self, source: str) -> tuple[int, int]:
        """How many objects of `source` are known, and how many of them wait to be completed."""


def open_store(uri: str) -> CaptureStore:
    """The capture store at `uri`, created if it does not exist.

    ``sqlite:///relative/path`` or ``sqlite:////absolute/path``, as SQLAlchemy writes them, or
    ``postgresql://user:password@host:port/database``.

    Raises:
        UserError: no store is known for the URI's scheme, or it cannot be opened.
        StoreUnavailableError: an embedded store is out of reach; one that is a server is first
            contacted when it is used.
    """
    scheme, separator, location = uri.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        from mlschool_dagster.capture.postgres import PostgresStore

        return PostgresStore(uri)
    if not separator or scheme != "sqlite":
        # The rest of the URI may hold a password.
        raise UserError(
            f"No capture store is known for {scheme if separator else 'a URI without scheme'!r}; "
            "use sqlite:///path/to/file or postgresql://user:password@host/database."
        )
    if not location.strip("/"):
        raise UserError(f"The capture store {uri} names no file; use sqlite:///path/to/file.")
    from mlschool_dagster.capture.sqlite import SqliteStore

    return SqliteStore(Path(location[1:]))
