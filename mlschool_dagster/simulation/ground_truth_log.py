"""The ground-truth log: the true class of each simulated event, which only the simulation knows."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from uuid import uuid4

from mlschool_dagster.errors import UserError
from mlschool_dagster.storage import Location

SEGMENT_ROWS = 500
"""Events in a file of the log: as many are lost at most if its writer is killed."""


class GroundTruthLog:
    """The log of one simulation run, in files of JSON lines below `folder`; leave it by ``with``.

    No two writers share a file, so that several may log into one folder at once.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._waiting: dict[str, str] = {}

    def append(self, truths: Mapping[str, str]) -> None:
        """Log the truth of each event id."""
        self._waiting |= truths
        if len(self._waiting) >= SEGMENT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what has been appended."""
        if self._waiting:
            self._folder.make_owned()
            lines = (json.dumps({"event_id": e, "truth": t}) for e, t in self._waiting.items())
            file = self._folder / f"{uuid4().hex}.jsonl"
            file.write("".join(f"{line}\n" for line in lines).encode())
            self._waiting = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()


def read_ground_truth(logs: Location) -> dict[str, str]:
    """The truth of every event by its id, from the logs of all runs, each a folder in `logs`.

    Raises:
        UserError: a line is damaged.
    """
    truths: dict[str, str] = {}
    for file in (file for folder in logs.children() for file in folder.children()):
        if not file.name.endswith(".jsonl"):
            continue
        for number, line in enumerate(file.read().splitlines(), start=1):
            try:
                entry = json.loads(line)
                truths[entry["event_id"]] = entry["truth"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"Line {number} of the ground-truth log {file.uri} is damaged; delete that "
                    "line."
                ) from None
    return truths
