"""Batches with group commit: waiting requests are predicted and captured in one transaction.

While one batch is made durable, requests gather for the next: the busier the server, the more of
them share one pass through the model and one synchronisation of the disk.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue

import numpy as np

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import Appended, InvalidCaptureError
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.buffered_store import (
    HAND_OVER_SECONDS,
    BufferedStore,
    BufferFullError,
)
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.serving.model_router import Version
from mlschool_dagster.serving.prediction_request import PredictionRequest
from mlschool_dagster.serving.worker_status import end_worker_if_failed

log = logging.getLogger(__name__)

Waiting = tuple[PredictionRequest, asyncio.Future[None]]
Outcome = Exception | Mapping[str, Capture]
"""Why a request was not kept, or what was answered before under its event ids."""


class CaptureFailedError(Exception):
    """A request's captures were not kept; nothing was promised, so the caller may try again."""


class ConflictError(Exception):
    """An event id already belongs to other rows; nothing of the request was kept."""


class Batcher:
    """Answers requests as the endpoint `name`, and keeps what it answered in `store`.

    One thread of its own appends, one transaction after the other; everything else happens in the
    event loop in which the batcher is made, so that the two compete as little as they can. A thread
    that hangs in the store is left there, and another one goes on with the write-ahead log.
    """

    def __init__(self, store: BufferedStore, name: str, metrics: Metrics) -> None:
        self._store = store
        self._name = name
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        # Begun now: a worker for which there is no thread must not be one.
        self._thread = _Thread(self._loop)
        self._waiting: list[Waiting] = []
        self._working: asyncio.Task[None] | None = None
        self._reported: set[str] = set()
        self.written = 0
        """Captures made durable since the start, duplicates included."""

    async def submit(self, request: PredictionRequest) -> None:
        """Predict (unless that is done already) and capture; durable on return.

        Raises:
            ConflictError: an event id belongs to other rows.
            CaptureFailedError: neither the store nor the write-ahead log can keep the captures.
        """
        answered: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((request, answered))
        if self._working is None:
            # The task begins after the requests that are at hand, so that they share its first
            # batch.
            self._working = self._loop.create_task(self._work())
            self._working.add_done_callback(self._end_if_failed)
        await answered

    async def close(self) -> None:
        """Answer what waits, end the thread and close the store."""
        if self._working is not None:
            await self._working
        await self._thread.close()
        self._store.close()

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._metrics.queue(len(batch))
            try:
                await self._answer(batch)
            except BaseException:
                # Callers that wait must get the error, whatever ends this worker.
                for _, answered in batch:
                    _finish(answered, CaptureFailedError("The worker cannot go on."))
                raise
        self._metrics.queue(0)
        self._working = None

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        batch = [waiting for waiting in self._predicted(batch) if not _settled(waiting)]
        if not batch:
            return
        requests = [request for request, _ in batch]
        started = time.perf_counter()
        outcomes = await self._append_in_time(requests)
        kept = sum(
            len(request.captures) + len(request.shadow_captures)
            for request, outcome in zip(requests, outcomes, strict=True)
            if request.is_captured and not isinstance(outcome, Exception)
        )
        if kept:
            self.written += kept
            self._metrics.commit(time.perf_counter() - started, kept)
        for (request, answered), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _finish(answered, outcome)
            else:
                request.settle(outcome)
                _finish(answered, None)

    async def _append_in_time(self, requests: Sequence[PredictionRequest]) -> Sequence[Outcome]:
        work = self._thread.run(self._append, requests)
        hurry = self._loop.call_later(HAND_OVER_SECONDS, _set, work, [], TimeoutError())
        try:
            return await work
        except TimeoutError:
            self._store.leave(f"no answer within {HAND_OVER_SECONDS:g} seconds")
            self._thread.abandon()
            self._thread = _Thread(self._loop)
            # What the other one still does in the store is the same, so it does no harm.
            return await self._thread.run(self._append, requests)
        finally:
            hurry.cancel()

    def _end_if_failed(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            waiting, self._waiting = self._waiting, []
            for _, answered in waiting:
                _finish(answered, CaptureFailedError("The worker cannot go on."))
            self._working = None
            end_worker_if_failed(task)

    def _predicted(self, batch: Sequence[Waiting]) -> Sequence[Waiting]:
        requests = [request for request, _ in batch if not request.captures]
        try:
            predict(requests, self._name)
        except Exception as error:
            if len(batch) == 1:
                _finish(batch[0][1], error)
                return []
            # One request that breaks its version must not take the others with it.
            return [answered for waiting in batch for answered in self._predicted([waiting])]
        self._predict_shadows(batch)
        return batch

    def _predict_shadows(self, batch: Sequence[Waiting]) -> None:
        try:
            predict_shadows([request for request, _ in batch], self._name)
        except Exception:
            # Whatever is wrong with a shadow is no concern of those who are answered.
            self._metrics.shadow_failed()
            shadows = {request.shadow.number for request, _ in batch if request.shadow is not None}
            # Once is enough: it will fail on every request to come.
            if not shadows <= self._reported:
                self._reported = shadows
                log.exception("the shadow does not predict")

    def _append(self, requests: Sequence[PredictionRequest]) -> list[Outcome]:
        """Keep the captures of `requests`, or remember them if they are outside the sample."""
        outcomes: dict[int, Outcome] = {}
        for is_captured, keep in ((True, self._keep), (False, self._remember)):
            some = [request for request in requests if request.is_captured is is_captured]
            if some:
                outcomes |= zip(map(id, some), self._settle(some, keep), strict=True)
        return [outcomes[id(request)] for request in requests]

    def _keep(self, requests: Sequence[PredictionRequest]) -> Appended:
        captures = [
            capture
            for request in requests
            for kept in (request.captures, request.shadow_captures)
            for capture in kept
        ]
        named = [c for request in requests if request.is_named for c in request.captures]
        return self._store.append(captures, named)

    def _remember(self, requests: Sequence[PredictionRequest]) -> Appended:
        return self._store.remember([c for request in requests for c in request.captures])

    def _settle(
        self,
        requests: Sequence[PredictionRequest],
        keep: Callable[[Sequence[PredictionRequest]], Appended],
    ) -> list[Outcome]:
        try:
            outcome = keep(requests)
        except InvalidCaptureError as error:
            if len(requests) > 1:
                # One that can never be kept must not take the others with it.
                return [self._settle([request], keep)[0] for request in requests]
            log.exception("captures could not be kept", extra={"requests": 1})
            return [CaptureFailedError(str(error))]
        except Exception as error:
            # Whatever failed, callers that wait must get the error, and the next batch must run.
            if not isinstance(error, BufferFullError):
                log.exception("captures could not be kept", extra={"requests": len(requests)})
            return [CaptureFailedError(str(error))] * len(requests)
        if not outcome.conflicts:
            return [outcome.duplicates] * len(requests)
        if len(requests) == 1:
            return [ConflictError()]
        clashing = [not outcome.conflicts.isdisjoint(request.event_ids) for request in requests]
        peaceful = [
            request for request, clashes in zip(requests, clashing, strict=True) if not clashes
        ]
        together = iter(self._settle(peaceful, keep) if peaceful else [])
        return [
            self._settle([request], keep)[0] if clashes else next(together)
            for request, clashes in zip(requests, clashing, strict=True)
        ]


class _Thread:
    """A thread that does one thing after the other, and in which it is no harm to hang.

    Raises:
        RuntimeError: the system has no thread to give.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._go_on, name="captures", daemon=True)
        self._thread.start()

    def run(
        self,
        work: Callable[[Sequence[PredictionRequest]], list[Outcome]],
        requests: Sequence[PredictionRequest],
    ) -> "asyncio.Future[list[Outcome]]":
        """Have `work` done on `requests`."""
        done: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._work.put((work, requests, done))
        return done

    def abandon(self) -> None:
        """End it once it has done what it has begun, which nobody waits for."""
        self._work.put(None)

    async def close(self) -> None:
        """End it and wait for that."""
        self.abandon()
        await asyncio.to_thread(self._thread.join)

    def _go_on(self) -> None:
        while (item := self._work.get()) is not None:
            work, requests, done = item
            try:
                outcomes, error = work(requests), None
            except BaseException as caught:
                outcomes, error = [], caught
            # The loop may have ended without this thread.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_set, done, outcomes, error)


_Work = tuple[
    Callable[[Sequence[PredictionRequest]], list[Outcome]],
    Sequence[PredictionRequest],
    "asyncio.Future[list[Outcome]]",
]


def _set(
    done: "asyncio.Future[list[Outcome]]", outcomes: list[Outcome], error: BaseException | None
) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(outcomes)
    else:
        done.set_exception(error)


def predict(requests: Sequence[PredictionRequest], endpoint: str) -> None:
    """Fill in the captures of `requests`, with one pass through the model for each version."""
    by_version: dict[tuple[int, Role], tuple[Version, list[PredictionRequest]]] = {}
    for request in requests:
        key = (id(request.version), request.role)
        by_version.setdefault(key, (request.version, []))[1].append(request)
    now = utc_now()
    for (_, role), (version, asked) in by_version.items():
        for request, probabilities in _probabilities(version, asked):
            request.captures = request.captures_of(version, role, probabilities, endpoint, now)


def predict_shadows(requests: Sequence[PredictionRequest], endpoint: str) -> None:
    """Fill in what the shadows say of `requests` that will be captured."""
    by_shadow: dict[int, tuple[Version, list[PredictionRequest]]] = {}
    for request in requests:
        if request.shadow is not None and not request.shadow_captures:
            by_shadow.setdefault(id(request.shadow), (request.shadow, []))[1].append(request)
    for shadow, asked in by_shadow.values():
        for request, probabilities in _probabilities(shadow, asked):
            request.shadow_captures = request.captures_of(
                shadow, Role.SHADOW, probabilities, endpoint, request.captures[0].captured_at
            )


def _probabilities(
    version: Version, requests: Sequence[PredictionRequest]
) -> list[tuple[PredictionRequest, list[list[float]]]]:
    rows = [row for request in requests for row in request.accepted.rows]
    with np.errstate(all="ignore"):
        probabilities = version.model.probabilities(rows).tolist()
    slices, start = [], 0
    for request in requests:
        end = start + len(request.accepted.rows)
        slices.append((request, probabilities[start:end]))
        start = end
    return slices


def _settled(waiting: Waiting) -> bool:
    """Whether the request is left out of the sample and has no name: answered, and that is all."""
    request, answered = waiting
    if request.is_captured or request.is_named:
        return False
    _finish(answered, None)
    return True


def _finish(answered: asyncio.Future[None], error: Exception | None) -> None:
    if answered.done():
        return
    if error is None:
        answered.set_result(None)
    else:
        answered.set_exception(error)
