"""A capture store that may be away: what it cannot keep now goes to a local journal.

The journal is replayed in order once the store is back, each capture exactly once: event ids make
it harmless to append one again, so that a replay may be cut off anywhere.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import Appended, CaptureStore, StoreAwayError, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.serving.journal import Journal, JournalFullError

REPLAY_ROWS = 1000
"""Captures per transaction of a replay: many more than a request's, so that it catches up."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0

log = logging.getLogger(__name__)


class SpillFullError(StoreAwayError):
    """The store is away and the journal cannot take more; nothing was kept."""


def open_spilling(store_uri: str, folder: Path, limit_bytes: int) -> "SpillingStore":
    """The store at `store_uri` with a journal in `folder`, whether the store is there or not.

    Raises:
        UserError: there is no such store, or it is none that may be back later.
    """
    return SpillingStore(lambda: open_store(store_uri), folder, limit_bytes)


class SpillingStore:
    """What a server appends to: the store that `connect` opens, else at most `limit_bytes` on disk.

    One thread appends; another, its own, replays this store's journal and those of dead owners in
    `folder`.
    """

    def __init__(self, connect: Callable[[], CaptureStore], folder: Path, limit_bytes: int) -> None:
        self._connect = connect
        self._folder = folder
        self._limit = limit_bytes
        self._store: CaptureStore | None = None
        self._journal: Journal | None = None
        self._adopted: Journal | None = None
        self._away = False
        self._turn = threading.Lock()
        self._awake = threading.Event()
        self._ending = threading.Event()
        try:
            self._store = connect()
        except StoreAwayError as error:
            self._leave(error)
        self._thread = threading.Thread(target=self._follow, name="replay", daemon=True)
        self._thread.start()

    @property
    def spilled_bytes(self) -> int:
        """How many bytes wait for the store in journals that this process owns."""
        journals = (self._journal, self._adopted)
        return sum(journal.size for journal in journals if journal is not None)

    def append(self, captures: Sequence[Capture]) -> Appended:
        """Keep `captures` as `CaptureStore.append` does, in the store or in the journal.

        While the store is away only the journal knows what is known already.

        Raises:
            SpillFullError: neither can keep them.
        """
        with self._turn:
            if self._store is not None and not self._away:
                try:
                    return self._store.append(captures)
                except StoreAwayError as error:
                    self._leave(error)
            return self._spill(captures)

    def count_refusals(self, window: Window, counts: Mapping[str, int]) -> None:
        """See `CaptureStore.count_refusals`; nothing is journalled."""
        if self._store is None or self._away:
            raise StoreAwayError("The capture store is away; captures go to the journal.")
        self._store.count_refusals(window, counts)

    def close(self) -> None:
        """End the replay; what is left of the journal is kept for the next owner."""
        self._ending.set()
        self._awake.set()
        self._thread.join()
        for journal in (self._journal, self._adopted):
            if journal is not None:
                journal.close()
        if self._store is not None:
            self._store.close()

    def _leave(self, error: StoreAwayError) -> None:
        self._away = True
        self._awake.set()
        log.warning("the store is away; captures go to the journal", extra={"reason": str(error)})

    def _spill(self, captures: Sequence[Capture]) -> Appended:
        try:
            if self._journal is None:
                self._journal = Journal.begin(self._folder, self._limit)
            return self._journal.append(captures)
        except (JournalFullError, OSError) as error:
            raise SpillFullError(
                f"The capture store is away and the journal in {self._folder} cannot take more "
                f"({error}); bring the store back or make room."
            ) from error

    def _follow(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._ending.is_set():
            self._awake.clear()
            try:
                self._replay_adopted()
                if self._away:
                    self._return()
                self._awake.wait(LONGEST_PAUSE_SECONDS)
                pause = FIRST_PAUSE_SECONDS
            except Exception as error:
                if not isinstance(error, StoreAwayError):
                    # Nothing of the journal is let go, and the next try may fare better.
                    log.exception("the journal could not be replayed")
                self._awake.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _replay_adopted(self) -> None:
        while not self._ending.is_set():
            self._adopted = self._adopted or Journal.adopt(self._folder, self._limit)
            if self._adopted is None:
                return
            while captures := self._adopted.oldest(REPLAY_ROWS):
                self._keep(captures)
                self._adopted.forget()
                if self._ending.is_set():
                    return
            self._adopted.discard()
            self._adopted = None

    def _return(self) -> None:
        """Replay the journal; once it is empty the store is in use again."""
        self._reached()
        while self._journal is not None and not self._ending.is_set():
            captures = self._journal.oldest(REPLAY_ROWS)
            self._keep(captures)
            self._journal.forget()
            if len(captures) < REPLAY_ROWS:
                break
        if self._ending.is_set():
            return
        with self._turn:
            # Only the few that came meanwhile, in a store that has just answered.
            if self._journal is not None:
                while captures := self._journal.oldest(REPLAY_ROWS):
                    self._keep(captures)
                    self._journal.forget()
                self._journal.discard()
                self._journal = None
            self._away = False
        log.info("the store is back; what was in the journal is in it")

    def _reached(self) -> CaptureStore:
        if self._store is None:
            self._store = self._connect()
        return self._store

    def _keep(self, captures: Sequence[Capture]) -> None:
        store = self._reached()
        if not store.append(captures).refused:
            return
        moved: dict[str, str] = {}
        for capture in captures:
            if capture.role is Role.SHADOW and capture.event_id in moved:
                store.append([replace(capture, event_id=moved[capture.event_id])])
            elif store.append([capture]).refused:
                moved[capture.event_id] = _another_id(capture)
                store.append([replace(capture, event_id=moved[capture.event_id])])
                log.warning(
                    "an event id of the journal belongs to other input in the store",
                    extra={"event_id": capture.event_id, "kept_as": moved[capture.event_id]},
                )


def _another_id(capture: Capture) -> str:
    """An event id made of the capture's own and its inputs: the same at every replay."""
    inputs = orjson.dumps(capture.inputs, option=orjson.OPT_SORT_KEYS)
    return f"{capture.event_id}~{hashlib.sha256(inputs).hexdigest()[:16]}"
