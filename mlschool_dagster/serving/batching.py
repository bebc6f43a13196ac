"""Micro-batches: requests at hand are predicted together and captured in one transaction.

While one batch is made durable, requests gather for the next: the busier the server, the more of
them share one pass through the model and one synchronisation of the disk.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlschool_dagster.capture.records import Role
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.serving.questions import Question
from mlschool_dagster.serving.spill import SpillFullError, SpillingStore
from mlschool_dagster.serving.versions import Version

log = logging.getLogger(__name__)

Waiting = tuple[Question, asyncio.Future[None]]


class CaptureFailedError(Exception):
    """A question's captures were not kept; nothing was promised, so the caller may try again."""


class ConflictError(Exception):
    """An event id already belongs to other input; nothing of the question was kept."""


class Batcher:
    """Answers questions as the endpoint `name`, and keeps what it answered in `store`.

    One thread of its own appends, one transaction after the other; everything else happens in the
    event loop in which the batcher is made, so that the two compete as little as they can.
    """

    def __init__(self, store: SpillingStore, name: str, metrics: Metrics) -> None:
        self._store = store
        self._name = name
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="captures")
        self._waiting: list[Waiting] = []
        self._working: asyncio.Task[None] | None = None
        self._told_of: set[str] = set()
        self.written = 0
        """Captures made durable since the start, repetitions included."""

    async def ask(self, question: Question) -> None:
        """Predict (unless that is done already) and capture; durable on return.

        Raises:
            ConflictError: an event id belongs to other input.
            CaptureFailedError: neither the store nor the journal can keep the captures.
        """
        answered: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((question, answered))
        if self._working is None:
            # The task begins after the requests that are at hand, so that they share its first
            # batch.
            self._working = self._loop.create_task(self._work())
        await answered

    async def close(self) -> None:
        """Answer what waits, end the thread and close the store."""
        if self._working is not None:
            await self._working
        self._thread.shutdown()
        self._store.close()

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._metrics.queue(len(batch))
            batch = [waiting for waiting in self._predicted(batch) if not _settled(waiting)]
            if not batch:
                continue
            outcomes = await self._loop.run_in_executor(self._thread, self._append, batch)
            for (_, answered), outcome in zip(batch, outcomes, strict=True):
                _finish(answered, outcome)
        self._metrics.queue(0)
        self._working = None

    def _predicted(self, batch: Sequence[Waiting]) -> Sequence[Waiting]:
        questions = [question for question, _ in batch if not question.captures]
        try:
            predict(questions, self._name)
        except Exception as error:
            if len(batch) == 1:
                _finish(batch[0][1], error)
                return []
            # One question that breaks its version must not take the others with it.
            return [answered for waiting in batch for answered in self._predicted([waiting])]
        self._predict_shadows(batch)
        return batch

    def _predict_shadows(self, batch: Sequence[Waiting]) -> None:
        try:
            predict_shadows([question for question, _ in batch], self._name)
        except Exception:
            # Whatever is wrong with a shadow is no concern of those who are answered.
            self._metrics.shadow_failed()
            shadows = {q.shadow.release.version for q, _ in batch if q.shadow is not None}
            # Once is enough: it will fail on every request to come.
            if not shadows <= self._told_of:
                self._told_of = shadows
                log.exception("the shadow does not predict")

    def _append(self, batch: Sequence[Waiting]) -> list[Exception | None]:
        captures = [
            capture
            for question, _ in batch
            for kept in (question.captures, question.shadow_captures)
            for capture in kept
        ]
        started = time.perf_counter()
        try:
            outcome = self._store.append(captures)
        except Exception as error:
            # Whatever went wrong, those who wait must hear of it and the next batch have its try.
            if not isinstance(error, SpillFullError):
                log.exception("captures could not be kept", extra={"requests": len(batch)})
            return [CaptureFailedError(str(error))] * len(batch)
        if not outcome.refused:
            self.written += len(captures)
            self._metrics.commit(time.perf_counter() - started, len(captures))
            for question, _ in batch:
                question.settle(outcome.repeated)
            return [None] * len(batch)
        if len(batch) == 1:
            return [ConflictError()]
        return self._append_apart(batch, outcome.refused)

    def _append_apart(
        self, batch: Sequence[Waiting], refused: frozenset[str]
    ) -> list[Exception | None]:
        """Append those who have none of the `refused` event ids together, the others one by one."""
        clashing = [not refused.isdisjoint(question.event_ids) for question, _ in batch]
        peaceful = [
            waiting for waiting, clashes in zip(batch, clashing, strict=True) if not clashes
        ]
        together = iter(self._append(peaceful) if peaceful else [])
        return [
            self._append([waiting])[0] if clashes else next(together)
            for waiting, clashes in zip(batch, clashing, strict=True)
        ]


def predict(questions: Sequence[Question], endpoint: str) -> None:
    """Fill in the captures of `questions`, with one pass through the model for each version."""
    by_version: dict[tuple[int, Role], tuple[Version, list[Question]]] = {}
    for question in questions:
        key = (id(question.version), question.role)
        by_version.setdefault(key, (question.version, []))[1].append(question)
    now = utc_now()
    for (_, role), (version, asked) in by_version.items():
        for question, probabilities in _probabilities(version, asked):
            question.captures = question.captures_of(version, role, probabilities, endpoint, now)


def predict_shadows(questions: Sequence[Question], endpoint: str) -> None:
    """Fill in what the shadows say of `questions` that will be captured."""
    by_shadow: dict[int, tuple[Version, list[Question]]] = {}
    for question in questions:
        if question.shadow is not None and not question.shadow_captures:
            by_shadow.setdefault(id(question.shadow), (question.shadow, []))[1].append(question)
    for shadow, asked in by_shadow.values():
        for question, probabilities in _probabilities(shadow, asked):
            question.shadow_captures = question.captures_of(
                shadow, Role.SHADOW, probabilities, endpoint, question.captures[0].captured_at
            )


def _probabilities(
    version: Version, questions: Sequence[Question]
) -> list[tuple[Question, list[list[float]]]]:
    rows = [row for question in questions for row in question.accepted.rows]
    with np.errstate(all="ignore"):
        probabilities = version.model.probabilities(rows).tolist()
    slices, start = [], 0
    for question in questions:
        end = start + len(question.accepted.rows)
        slices.append((question, probabilities[start:end]))
        start = end
    return slices


def _settled(waiting: Waiting) -> bool:
    """Whether the question is left out of the sample: answered, and that is all."""
    question, answered = waiting
    if question.is_captured:
        return False
    _finish(answered, None)
    return True


def _finish(answered: asyncio.Future[None], error: Exception | None) -> None:
    if answered.cancelled():
        return
    if error is None:
        answered.set_result(None)
    else:
        answered.set_exception(error)
