"""Giving each channel what it has not been told yet."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime

from mlschool_dagster.alerting.book import Book
from mlschool_dagster.alerting.channels import Channel, DeliveryError

MESSAGE_NOTICES = 20
"""Most notices of a message."""
SENDING_SECONDS = 20.0
"""How long all channels together may take."""


def deliver(book: Book, channels: Sequence[Channel], now: datetime) -> None:
    """Send each channel one message of what waits for it, all at once.

    What a channel does not take stays in the book, and the others are none the worse. A channel
    that takes longer than `SENDING_SECONDS` counts as one that did not take it, and may be told the
    same again; so may one that had taken it when the process died.
    """
    waiting = {
        channel: notices
        for channel in channels
        if (notices := book.waiting(channel.name, now, MESSAGE_NOTICES))
    }
    if not waiting:
        return
    threads = ThreadPoolExecutor(len(waiting))
    sent = {
        channel: threads.submit(channel.send, list(notices.values()))
        for channel, notices in waiting.items()
    }
    wait(sent.values(), SENDING_SECONDS)
    threads.shutdown(wait=False)
    for channel, outcome in sent.items():
        error = _error(outcome)
        if error is None:
            book.taken(channel.name, waiting[channel])
        else:
            book.refused(channel.name, str(error), now, error.retry_after)


def _error(outcome: "Future[None]") -> DeliveryError | None:
    if not outcome.done():
        return DeliveryError(f"it was not done within {SENDING_SECONDS:.0f} s")
    error = outcome.exception()
    if error is None or isinstance(error, DeliveryError):
        return error
    # What it says of itself may hold a secret.
    return DeliveryError(f"it failed with {type(error).__name__}")
