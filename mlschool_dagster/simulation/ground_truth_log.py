"""The ground-truth log: the true class of each simulated event, which only the simulation knows."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mlschool_dagster.errors import UserError


class GroundTruthLog:
    """The true class of each event, in the JSON lines file at `path`, created when first needed.

    Several writers may append to one log at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, truths: Mapping[str, str]) -> None:
        """Append the truth of each event id."""
        lines = "".join(
            json.dumps({"event_id": event_id, "truth": truth}) + "\n"
            for event_id, truth in truths.items()
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One unbuffered append keeps the lines of several writers whole.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(lines.encode())

    def read(self) -> dict[str, str]:
        """The truth of every event in the log, by event id; none before the first entry.

        Raises:
            UserError: a line is damaged.
        """
        truths: dict[str, str] = {}
        if not self._path.exists():
            return truths
        with self._path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    entry = json.loads(line)
                    truths[entry["event_id"]] = entry["truth"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"Line {number} of the ground-truth log {self._path} is damaged; "
                        "delete that line."
                    ) from None
        return truths
