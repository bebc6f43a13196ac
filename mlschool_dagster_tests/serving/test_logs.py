"""The log: whole lines, bounded in rate, and never in the way of a request."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.serving.logs import (
    MAX_WAITING_LINES,
    REJECTIONS_PER_SECOND,
    Bounded,
    JsonFormatter,
    RequestLog,
)
from mlschool_dagster.serving.server_config import STORE_VARIABLE, TOKEN_VARIABLE
from mlschool_dagster.settings import ROOT


@dataclass
class Request:
    """What a request log wants to know of a request."""

    status: int = 200
    event_id: str = "event-1"
    version: str = "1"
    role: str = "primary"
    rows: int = 1


class Output:
    """Where the process's log goes; its writer can be held up."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self.flowing = threading.Event()
        self.flowing.set()

    def write(self, text: str) -> int:
        self.flowing.wait()
        return self._text.write(text)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._text.getvalue().splitlines()]


@pytest.fixture
def output() -> Iterator[Output]:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    output = Output()
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonFormatter())
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    yield output
    root.handlers = before
    root.setLevel(level)


@given(st.text(), st.dictionaries(st.sampled_from(["event_id", "reason", "url"]), st.text()))
def test_a_record_is_one_line_whatever_it_says(message: str, extra: dict[str, str]) -> None:
    record = logging.makeLogRecord({"msg": message, "levelno": logging.INFO, **extra})
    line = JsonFormatter().format(record)
    assert all(" " <= character <= "~" for character in line)
    logged = json.loads(line)
    assert logged["message"] == message
    assert {name: logged[name] for name in extra} == extra


def test_every_request_is_reported_if_asked_for(output: Output) -> None:
    requests = RequestLog(access=True)
    requests.answered(Request(rows=3), 0.0123456)
    requests.close()
    (line,) = output.lines
    assert line.pop("at")
    assert line == {
        "level": "info",
        "message": "request answered",
        "event_id": "event-1",
        "status": 200,
        "milliseconds": 12.346,
        "version": "1",
        "role": "primary",
        "rows": 3,
    }


def test_only_refused_requests_are_reported_otherwise(output: Output) -> None:
    requests = RequestLog(access=False)
    requests.answered(Request(), 0.01)
    requests.rejected(Request(status=422), "unknown column")
    requests.close()
    (line,) = output.lines
    assert line["message"] == "request refused"
    assert (line["event_id"], line["status"]) == ("event-1", 422)
    assert line["reason"] == "unknown column"


def test_a_flood_of_refusals_is_bounded_and_accounted_for(output: Output) -> None:
    requests = RequestLog(access=False)
    refused = 0
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        requests.rejected(Request(status=400), "malformed")
        refused += 1
    requests.close()
    logged = [line for line in output.lines if line["message"] == "request refused"]
    assert len(logged) == 2 * REJECTIONS_PER_SECOND
    assert len(logged) + sum(line.get("suppressed", 0) for line in output.lines) == refused


def test_errors_pass_whatever_the_rate() -> None:
    bound = Bounded(1)
    records = [logging.makeLogRecord({"levelno": logging.ERROR}) for _ in range(5)]
    assert all(bound.filter(record) for record in records)


def test_a_log_that_nobody_reads_holds_up_no_request(output: Output) -> None:
    requests = RequestLog(access=True)
    output.flowing.clear()
    total = 2 * MAX_WAITING_LINES
    for _ in range(total):
        requests.answered(Request(), 0.001)
    output.flowing.set()
    requests.close()
    logged = [line for line in output.lines if line["message"] == "request answered"]
    assert MAX_WAITING_LINES <= len(logged) < total
    assert len(logged) + sum(line.get("suppressed", 0) for line in output.lines) == total


WORKER = """
import logging, sys, threading
from mlschool_dagster.serving.logs import configure_logging
configure_logging()
logging.getLogger("x").error("it is %s", "a-long-enough-token")
try:
    raise ValueError("a-long-enough-token")
except ValueError:
    logging.getLogger("x").exception("failed")
assert not any(name.startswith("dagster") for name in sys.modules)
raise RuntimeError("a-long-enough-token")
"""


def test_neither_the_log_nor_a_last_traceback_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "a-long-enough-token"
    server = ["-m", "mlschool_dagster.serving", "--home", str(home), "--name", "penguins"]
    secrets = {TOKEN_VARIABLE: "a-long-enough-token", STORE_VARIABLE: f"sqlite:///{tmp_path}/c.db"}
    for arguments in (["-c", WORKER], server):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **secrets, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "***" in done.stderr
        assert "long-enough" not in done.stdout + done.stderr
