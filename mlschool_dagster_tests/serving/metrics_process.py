"""A process that counts: what it reads, line by line, it calls on its metrics.

A line is a JSON list of calls, each a name and its arguments; the answer is the exposition as one
JSON string. It stands in for a worker, whose calls come from requests.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


class MetricsProcess:
    """A running one; its pid, and what it says after it has counted."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def count(self, *calls: tuple[Any, ...]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(calls) + "\n")
        self._process.stdin.flush()

    def exposition(self) -> str:
        self.count(("exposition",))
        assert self._process.stdout is not None
        return str(json.loads(self._process.stdout.readline()))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def metrics_process(folder: Path) -> Iterator[MetricsProcess]:
    """A process that shares its metrics in `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield MetricsProcess(process)
        finally:
            process.kill()


def samples(exposition: str) -> Samples:
    """The value of each sample, by name and labels in order."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def main() -> None:
    from mlschool_dagster.serving.metrics import Metrics
    from mlschool_dagster.serving.worker_status import retire_counts

    folder = Path(sys.argv[1])
    metrics = Metrics("test", folder)
    for line in sys.stdin:
        for name, *arguments in json.loads(line):
            if name == "exposition":
                sys.stdout.write(json.dumps(metrics.exposition()[0].decode()) + "\n")
                sys.stdout.flush()
            elif name == "share":
                metrics._flush()
            elif name == "forget":
                retire_counts(folder, *arguments)
            elif name == "serves":
                role, version, since = arguments
                metrics.serves(role, version, datetime.fromisoformat(since))
            else:
                getattr(metrics, name)(*arguments)


if __name__ == "__main__":
    main()
