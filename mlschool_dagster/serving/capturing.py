"""Group commit: many requests share a transaction, each waits until its own part is durable."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import CaptureStore

MAX_BATCH = 5_000
"""Captures per transaction, more or less: bounds how long one commit takes."""

log = logging.getLogger(__name__)

Waiting = tuple[Sequence[Capture], asyncio.Future[frozenset[str]]]


class CaptureFailedError(Exception):
    """The store did not keep a capture; nothing was promised, so the caller may try again."""


class CaptureWriter:
    """One thread that appends to `store` all that waits, in one transaction after the other.

    It belongs to the event loop in which it is made. `close` writes what still waits, and then lets
    go of the store.
    """

    def __init__(self, store: CaptureStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="captures")
        self._thread.start()
        self.written = 0
        """Captures made durable since the start, repetitions included."""

    async def append(self, captures: Sequence[Capture]) -> frozenset[str]:
        """Keep `captures`, all or none; durable on return.

        Returns:
            The event ids that belong to a capture with other inputs; if there is one, nothing was
            kept.

        Raises:
            CaptureFailedError: the store is away, full or broken.
        """
        kept: asyncio.Future[frozenset[str]] = self._loop.create_future()
        self._queue.put((captures, kept))
        return await kept

    async def close(self) -> None:
        """Write what waits, end the thread and close the store."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._store.close()

    def _work(self) -> None:
        for batch in self._batches():
            outcomes = self._append(batch)
            self._loop.call_soon_threadsafe(_tell, batch, outcomes)

    def _batches(self) -> Iterator[list[Waiting]]:
        while (first := self._queue.get()) is not None:
            batch, size = [first], len(first[0])
            ended = False
            while size < MAX_BATCH:
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    ended = True
                    break
                batch.append(item)
                size += len(item[0])
            yield batch
            if ended:
                return

    def _append(self, batch: Sequence[Waiting]) -> list[frozenset[str] | Exception]:
        try:
            refused = self._store.append([capture for captures, _ in batch for capture in captures])
        except Exception as error:
            # Whatever went wrong, those who wait must hear of it and the thread must live on.
            log.exception("captures could not be kept", extra={"requests": len(batch)})
            return [error] * len(batch)
        if not refused:
            self.written += sum(len(captures) for captures, _ in batch)
            return [refused] * len(batch)
        if len(batch) == 1:
            return [refused]
        # The conflict of one request must not refuse the others.
        return [outcome for waiting in batch for outcome in self._append([waiting])]


def _tell(batch: Sequence[Waiting], outcomes: Sequence[frozenset[str] | Exception]) -> None:
    for (_, kept), outcome in zip(batch, outcomes, strict=True):
        if kept.cancelled():
            continue
        if isinstance(outcome, Exception):
            kept.set_exception(CaptureFailedError(str(outcome)))
        else:
            kept.set_result(outcome)
