"""Where notices are told: what every channel can do, and the log."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from mlschool_dagster.alerting.alert import Kind, Notice

ANSWER_SECONDS = 5.0
"""How long a server may take to connect, or to go on with its answer."""


class DeliveryError(Exception):
    """Notices could not be told; the text says why, without any secret.

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

    def send(self, notices: Sequence[Notice]) -> None:
        """Tell all of `notices` (at least one), in their order, in one message.

        Raises:
            DeliveryError: nothing can be taken for told.
        """


class LogChannel:
    """Notices as lines of `log`: errors, warnings, and what is well again as information."""

    name = "log"

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def send(self, notices: Sequence[Notice]) -> None:
        """See `Channel.send`."""
        for notice in notices:
            self._log.log(_level(notice), f"{notice.text} {notice.link}".rstrip())


def _level(notice: Notice) -> int:
    if notice.kind is Kind.RECOVERY:
        return logging.INFO
    return logging.ERROR if notice.severe else logging.WARNING
