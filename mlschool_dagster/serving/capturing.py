"""Group commit: many requests share a transaction, each waits until its own part is durable."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.store import CaptureStore

log = logging.getLogger(__name__)

Waiting = tuple[Sequence[Capture], asyncio.Future[frozenset[str]]]


class CaptureFailedError(Exception):
    """The store did not keep a capture; nothing was promised, so the caller may try again."""


class CaptureWriter:
    """Appends to `store`, in a thread of its own, one transaction after the other.

    While one commits, requests gather for the next: the busier the server, the more share one
    synchronisation of the disk. A writer belongs to the event loop in which it is made.
    """

    def __init__(self, store: CaptureStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="captures")
        self._waiting: list[Waiting] = []
        self._committing: asyncio.Task[None] | None = None
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
        self._waiting.append((captures, kept))
        if self._committing is None:
            # The task begins after the requests that are at hand, so that they share its first
            # commit.
            self._committing = self._loop.create_task(self._commit())
        return await kept

    async def close(self) -> None:
        """Write what waits, end the thread and close the store."""
        if self._committing is not None:
            await self._committing
        self._thread.shutdown()
        self._store.close()

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            outcomes = await self._loop.run_in_executor(self._thread, self._append, batch)
            for (_, kept), outcome in zip(batch, outcomes, strict=True):
                if kept.cancelled():
                    continue
                if isinstance(outcome, Exception):
                    kept.set_exception(CaptureFailedError(str(outcome)))
                else:
                    kept.set_result(outcome)
        self._committing = None

    def _append(self, batch: Sequence[Waiting]) -> list[frozenset[str] | Exception]:
        try:
            refused = self._store.append([capture for captures, _ in batch for capture in captures])
        except Exception as error:
            # Whatever went wrong, those who wait must hear of it and the next batch have its try.
            log.exception("captures could not be kept", extra={"requests": len(batch)})
            return [error] * len(batch)
        if not refused:
            self.written += sum(len(captures) for captures, _ in batch)
            return [refused] * len(batch)
        if len(batch) == 1:
            return [refused]
        # The conflict of one request must not refuse the others.
        return [outcome for waiting in batch for outcome in self._append([waiting])]
