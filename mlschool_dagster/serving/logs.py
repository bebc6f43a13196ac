"""The server's log: one JSON object a line, for machines to read; never a request's data.

Lines that clients cause are bounded in rate and never make the event loop wait.
"""

import json
import logging
import time
from collections import deque
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, Protocol

from mlschool_dagster.credentials import scrub_logs_and_tracebacks

REJECTIONS_PER_SECOND = 10
MAX_WAITING_LINES = 10_000
"""Lines beyond this are dropped, and counted: who reads the log is slower than the server."""

# What every record has; anything beyond came with `extra` and belongs in the line.
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ``at``, ``level``, ``message``, extras, and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging() -> None:
    """Send every log record and warning of this process to standard error as `JsonFormatter`.

    None of them shows a secret, nor does a traceback that ends the process.
    """
    scrub_logs_and_tracebacks()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It warns of each request that is no HTTP.
    logging.getLogger("uvicorn.error").addFilter(Bounded(REJECTIONS_PER_SECOND))


class Bounded(logging.Filter):
    """Lets `per_second` records pass in any second, errors aside, and counts the others.

    A record that passes after others were ``suppressed`` carries their number under that name.
    """

    def __init__(self, per_second: int) -> None:
        super().__init__()
        self._passed: deque[float] = deque(maxlen=per_second)
        self.suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` passes."""
        if record.levelno >= logging.ERROR:
            return True
        now = time.monotonic()
        if len(self._passed) == self._passed.maxlen and now - self._passed[0] < 1.0:
            self.suppressed += 1
            return False
        self._passed.append(now)
        if self.suppressed:
            record.suppressed = self.suppressed
            self.suppressed = 0
        return True


class Answered(Protocol):
    """Log record of a request; the name of a version and its role are empty without one."""

    status: int
    event_id: str
    version: str
    role: str
    rows: int


class RequestLog:
    """A line for each refused request, as far as `Bounded` lets it; with `access`, for each one.

    Lines go where the process's log goes, written by a thread of their own. Belongs to one thread.
    """

    def __init__(self, access: bool) -> None:
        self._waiting = _Waiting()
        self._rejections = self._logger()
        self._bound = Bounded(REJECTIONS_PER_SECOND)
        self._rejections.addFilter(self._bound)
        self._access = self._logger() if access else None
        self._writer = QueueListener(self._waiting.queue, *logging.getLogger().handlers)
        self._writer.start()

    def answered(self, request: Answered, seconds: float) -> None:
        """Log a request of whatever status, that took `seconds`."""
        if self._access is not None:
            self._access.info(
                "request answered",
                extra={
                    "event_id": request.event_id,
                    "status": request.status,
                    "milliseconds": round(seconds * 1000, 3),
                    "version": request.version,
                    "role": request.role,
                    "rows": request.rows,
                },
            )

    def rejected(self, request: Answered, reason: str) -> None:
        """Log a refused request; `reason` is of a closed vocabulary, never of the request."""
        self._rejections.info(
            "request refused",
            extra={"event_id": request.event_id, "status": request.status, "reason": reason},
        )

    def close(self) -> None:
        """Write what waits, and how many lines were left out since the last one."""
        self._writer.stop()
        left_out = self._bound.suppressed + self._waiting.dropped
        if left_out:
            logging.getLogger(__name__).info("lines left out", extra={"suppressed": left_out})

    def _logger(self) -> logging.Logger:
        # Outside the hierarchy, so that nothing but the queue gets its records.
        logger = _RequestLogger(__name__, logging.INFO)
        logger.addHandler(self._waiting)
        return logger


class _RequestLogger(logging.Logger):
    """Makes records that are not searched for secrets, which would take longer than a request.

    Their messages are this module's own.
    """

    def makeRecord(  # noqa: N802 - logging's name
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Any = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        """See `logging.Logger`."""
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        vars(record).update(extra or {})
        return record


class _Waiting(QueueHandler):
    """The records that wait to be written, few enough to be kept in memory."""

    queue: "SimpleQueue[logging.LogRecord]"

    def __init__(self) -> None:
        super().__init__(SimpleQueue())
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record itself: it stays in this process and holds nothing that changes."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Keep `record` until it is written, with the number of records ``dropped`` before it."""
        if self.queue.qsize() >= MAX_WAITING_LINES:
            self.dropped += 1
            return
        if self.dropped:
            record.dropped = self.dropped
            self.dropped = 0
        self.queue.put_nowait(record)
