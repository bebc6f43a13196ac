"""The server's log: one JSON object a line, for machines to read; never a request's data."""

import json
import logging
from datetime import UTC, datetime

# What every record has; anything beyond came with `extra` and belongs in the line.
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "color_message"}


class JsonLines(logging.Formatter):
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
    """Send every log record and warning of this process to standard error as `JsonLines`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
