"""A capture store that may be unavailable: captures then go to a write-ahead log on local disk.

The log is replayed in order once the store is back, each capture exactly once: event ids make it
harmless to append a capture again. So a replay may be cut off anywhere, and a thread that hangs in
the store may finish there after another one has taken over.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlschool_dagster.capture.idempotency import (
    affected_keys,
    requests_of,
    resolve_duplicates,
    same_answer,
    with_distinct_ids,
)
from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import (
    Appended,
    CaptureSink,
    InvalidCaptureError,
    NoCaptures,
    StoreUnavailableError,
    open_store,
)
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.serving.write_ahead_log import (
    WAITING_FILE,
    AnswerCache,
    WriteAheadLog,
    WriteAheadLogFullError,
    size_of_all,
)

REPLAY_ROWS = 1000
"""Captures per transaction of a replay: many more than a request's, so that it catches up."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
"""Longest time until an idle server notices that its store is available again, or was moved."""
HAND_OVER_SECONDS = 0.5
"""How long a store may keep requests waiting before the write-ahead log takes over: many times what
a commit takes, and hardly noticed by who waits."""
END_SECONDS = 5.0
"""How long closing waits for a thread that may hang in the store."""
ANSWERS_FOLDER = "answers"

log = logging.getLogger(__name__)


class BufferFullError(StoreUnavailableError):
    """Store unavailable and write-ahead log full; nothing was acknowledged."""


def open_buffered_store(store_uri: str, folder: Path, limit_bytes: int) -> "BufferedStore":
    """Open the store at `store_uri` with a write-ahead log in `folder`, store available or not.

    Without a URI, nothing is captured.

    Raises:
        UserError: there is no such store, or it is none that may be back later.
    """
    connect: Callable[[], CaptureSink] = partial(open_store, store_uri) if store_uri else NoCaptures
    return BufferedStore(connect, folder, limit_bytes)


class BufferedStore:
    """Store of a server: the one that `connect` opens, else a buffer of `limit_bytes` on disk.

    Recent answers are kept beside `folder`, in which the write-ahead log is made when needed.

    One thread appends; if it hangs in the store, `leave` lets another go on without it. A thread of
    the store's own replays the write-ahead log in `folder`, which all workers of a server share.
    """

    def __init__(self, connect: Callable[[], CaptureSink], folder: Path, limit_bytes: int) -> None:
        self._connect = connect
        self._folder = folder
        self._limit = limit_bytes
        self._store: CaptureSink | None = None
        self._wal: WriteAheadLog | None = None
        self._answers = AnswerCache(folder.with_name(ANSWERS_FOLDER))
        self._waiting = str(folder / WAITING_FILE)
        self._is_unavailable = False
        self._has_waited = False
        self._inside: set[int] = set()
        self._awake = threading.Event()
        self._ending = threading.Event()
        if folder.is_dir():
            # A server before this one may have left something in it.
            with suppress(OSError):
                self._open_wal()
        try:
            self._store = connect()
        except StoreUnavailableError as error:
            self.leave(str(error))
        self._thread = threading.Thread(target=self._follow, name="replay", daemon=True)
        self._thread.start()

    @property
    def buffered_bytes(self) -> int:
        """How many bytes wait for the store, whichever worker wrote them."""
        return size_of_all(self._folder)

    def append(
        self, captures: Sequence[Capture], named: Sequence[Capture] | None = None
    ) -> Appended:
        """Keep `captures` as `CaptureStore.append` does, in the store or in the write-ahead log.

        While the store is unavailable the write-ahead log knows what is known already, and what was
        answered lately: of `named` (all of them by default), the captures whose ids somebody else
        chose.

        Raises:
            BufferFullError: neither can keep them.
            InvalidCaptureError: the store will never keep them.
        """
        named = captures if named is None else named
        answers = [capture for capture in named if capture.role is not Role.SHADOW]
        attempt = self._answers.attempt(answers)
        try:
            outcome = self._append_to_store(captures)
            if outcome is None:
                outcome = self._append_to_wal(captures)
        finally:
            self._answers.ended(attempt)
        if outcome.conflicts:
            self._answers.retract(attempt)
        elif outcome.duplicates or not self._answers.confirm(attempt):
            self._answers.add([outcome.duplicates.get(c.event_id, c) for c in answers])
        return outcome

    def remember(self, captures: Sequence[Capture]) -> Appended:
        """Result of `append` for `captures` that are outside the sample, and so kept nowhere.

        Only what was answered lately counts as known.
        """
        with ExitStack() as stack:
            # Without its turn the worst is that two workers answer the same id at once.
            with suppress(OSError):
                stack.enter_context(self._open_wal().exclusive())
            appended, new = resolve_duplicates(
                captures, self._answers.find(affected_keys(captures))
            )
            if not appended.conflicts:
                self._answers.add(new)
            return appended

    def leave(self, reason: str) -> None:
        """Use the write-ahead log until the store has proved to be back; safe for threads."""
        if not self._is_unavailable:
            log.warning(
                "the store is unavailable; captures go to the write-ahead log",
                extra={"reason": reason},
            )
        self._is_unavailable = True
        self._awake.set()

    def count_refusals(self, window: Window, counts: Mapping[str, int]) -> None:
        """See `CaptureStore.count_refusals`; nothing goes to the write-ahead log."""
        if self._store is None or self._is_unavailable:
            raise StoreUnavailableError("The capture store is unavailable; captures go to the wal.")
        self._store.count_refusals(window, counts)

    def close(self) -> None:
        """End the replay; what is left of the write-ahead log is kept for who comes next."""
        self._ending.set()
        self._awake.set()
        self._thread.join(END_SECONDS)
        self._answers.close()
        if self._thread.is_alive() or self._inside:
            # It hangs in the store, which nobody can close under it.
            return
        if self._wal is not None:
            self._wal.close()
        if self._store is not None:
            self._store.close()

    def _may_use_store(self) -> bool:
        if self._is_waiting:
            # Another worker may have been the first to notice.
            self._has_waited = True
            if not self._is_unavailable:
                self.leave("captures of another worker wait for it")
        elif self._has_waited and not self._inside:
            self._is_back()
        return not self._is_unavailable

    @property
    def _is_waiting(self) -> bool:
        return os.path.exists(self._waiting)  # noqa: PTH110 - on the path of each request

    def _is_back(self) -> None:
        self._is_unavailable = self._has_waited = False
        self._answers.rest()

    def _open_wal(self) -> WriteAheadLog:
        if self._wal is None:
            self._wal = WriteAheadLog(self._folder, self._limit)
        return self._wal

    def _append_to_store(self, captures: Sequence[Capture]) -> Appended | None:
        """Append to the store; None if it is unavailable."""
        if self._store is None or not self._may_use_store():
            return None
        this = threading.get_ident()
        self._inside.add(this)
        try:
            return self._store.append(captures)
        except StoreUnavailableError as error:
            self.leave(str(error))
            return None
        finally:
            self._inside.discard(this)

    def _append_to_wal(self, captures: Sequence[Capture]) -> Appended:
        try:
            return self._open_wal().append(captures, self._answers)
        except (WriteAheadLogFullError, OSError) as error:
            raise BufferFullError(
                f"The capture store is unavailable and the log in {self._folder} cannot "
                f"take more ({error}); bring the store back or make room."
            ) from error

    def _follow(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._ending.is_set():
            self._awake.clear()
            try:
                if self._is_unavailable or self._is_waiting:
                    is_done = self._return()
                else:
                    self._reached().append([])
                    is_done = True
                pause = LONGEST_PAUSE_SECONDS if is_done else FIRST_PAUSE_SECONDS
            except StoreUnavailableError as error:
                self.leave(str(error))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except Exception:
                # Nothing of the write-ahead log is let go, and the next try may fare better.
                log.exception("the write-ahead log could not be replayed")
                pause = LONGEST_PAUSE_SECONDS
            self._awake.wait(pause)

    def _return(self) -> bool:
        """Replay the write-ahead log; once it is empty the store is in use again.

        Whether it is: another worker may be at it.
        """
        self._reached().append([])
        if self._wal is None and not self._is_waiting:
            self._is_back()
            return True
        wal = self._open_wal()
        with wal.replaying() as is_ours:
            if not is_ours:
                return False
            while captures := wal.oldest(REPLAY_ROWS):
                self._keep(captures)
                wal.checkpoint()
                if self._ending.is_set():
                    return False
                if len(captures) < REPLAY_ROWS:
                    break
            with wal.exclusive():
                # Only the few that came meanwhile, while nobody can add to them.
                while captures := wal.oldest(REPLAY_ROWS):
                    self._keep_in_time(captures)
                    wal.checkpoint()
                wal.end()
                self._is_back()
        log.info("the store is back; what was in the write-ahead log is in it")
        return True

    def _reached(self) -> CaptureSink:
        if self._store is None:
            self._store = self._connect()
        return self._store

    def _keep(self, captures: Sequence[Capture]) -> None:
        """Have `captures` of the write-ahead log in the store, as they were answered."""
        with suppress(InvalidCaptureError):
            if _is_as_answered(captures, self._reached().append(captures)):
                return
        moved: dict[str, str] = {}
        for request in requests_of(captures):
            # A shadow goes with the answer beside which it stands.
            moved |= self._keep_request(
                [
                    replace(c, event_id=moved.get(c.event_id, c.event_id))
                    if c.role is Role.SHADOW
                    else c
                    for c in request
                ]
            )

    def _keep_in_time(self, captures: Sequence[Capture]) -> None:
        """Do as `_keep` does, or raise `StoreUnavailableError` if the store hangs."""
        done: Future[None] = Future()

        def keep() -> None:
            try:
                self._keep(captures)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=keep, name="last of the log", daemon=True).start()
        try:
            done.result(HAND_OVER_SECONDS)
        except TimeoutError:
            # What it still does there is a duplicate: nothing of the write-ahead log was let go.
            raise StoreUnavailableError("The capture store does not answer in time.") from None

    def _keep_request(self, request: Sequence[Capture]) -> dict[str, str]:
        """Have the rows of one request in the store; their other ids if it knows them otherwise."""
        try:
            if _is_as_answered(request, self._reached().append(request)):
                return {}
            moved = with_distinct_ids(request)
            self._reached().append(moved)
        except InvalidCaptureError as error:
            self._open_wal().set_aside(request, str(error))
            return {}
        log.warning(
            "an event id of the write-ahead log was answered otherwise in the store",
            extra={"event_id": request[0].event_id, "kept_as": moved[0].event_id},
        )
        return {
            before.event_id: after.event_id for before, after in zip(request, moved, strict=True)
        }


def _is_as_answered(captures: Sequence[Capture], outcome: Appended) -> bool:
    """Whether the store keeps `captures` as clients were answered."""
    return not outcome.conflicts and all(
        same_answer(capture, outcome.duplicates.get(capture.event_id, capture))
        for capture in captures
        if capture.role is not Role.SHADOW
    )
