"""Where notifications are told: what every channel can do, and the log."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from mlschool_dagster.alerting.incidents import Notification, NotificationKind

ANSWER_SECONDS = 5.0
"""How long a server may take to connect, or to go on with its answer."""


class DeliveryError(Exception):
    """Notifications could not be told; the text says why, without any secret.

    ``retry_after`` is how long the channel asked to be left alone.
    """

    def __init__(self, why: str, retry_after: timedelta | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Channel(Protocol):
    """A way to reach people."""

    @property
    def name(self) -> str:
        """What the channel is called in the book and in the log; no secret."""

    def send(self, notifications: Sequence[Notification]) -> None:
        """Tell all of `notifications` (at least one), in their order, in one message.

        Raises:
            DeliveryError: nothing can be taken for told.
        """


class LogChannel:
    """Notifications as lines of `log`: errors, warnings, and what is well again as information."""

    name = "log"

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def send(self, notifications: Sequence[Notification]) -> None:
        """See `Channel.send`."""
        for notification in notifications:
            self._log.log(_level(notification), f"{notification.text} {notification.link}".rstrip())


def _level(notification: Notification) -> int:
    if notification.kind is NotificationKind.RESOLVED:
        return logging.INFO
    return logging.ERROR if notification.severe else logging.WARNING
