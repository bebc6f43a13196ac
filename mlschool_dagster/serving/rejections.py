"""Refused requests, counted by reason and hour until the store has the counts."""

import asyncio
import logging
from collections import Counter, defaultdict

from mlschool_dagster.capture.store import StoreUnavailableError
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.buffered_store import BufferedStore
from mlschool_dagster.serving.metrics import Metrics

log = logging.getLogger(__name__)


class RejectionCounts:
    """Counts in memory, since nothing was promised to who was refused, and hands over in batches.

    A server that is killed loses the counts of the last second.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: defaultdict[Window, Counter[str]] = defaultdict(Counter)

    def count(self, reason: str) -> None:
        """Count one refused request under its first reason, so that counts add up to requests."""
        self._counts[Window.of(utc_now())][reason] += 1
        self._metrics.rejected(reason)

    async def flush(self, store: BufferedStore) -> None:
        """Add the counts so far to the store's; while it is unavailable they stay here."""
        for window in list(self._counts):
            counts = self._counts.pop(window)
            try:
                await asyncio.to_thread(store.count_refusals, window, counts)
            except StoreUnavailableError as error:
                self._counts[window].update(counts)
                log.warning("refusals wait for the store", extra={"reason": str(error)})
