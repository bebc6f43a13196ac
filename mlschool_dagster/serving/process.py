"""The record of a running server, and whether the process that it names still is that server."""

import hashlib
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from mlschool_dagster.serving.deployment import write_json

SERVER_FILE = "server.json"
LOG_FILE = "server.log"


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server process: ``started`` tells its pid from a later process with the same number.

    ``configuration`` is a digest of what it was started with; two servers with the same digest are
    interchangeable. It is a digest because a store's URI may hold a password.
    """

    pid: int
    started: str
    url: str
    configuration: str

    @property
    def is_running(self) -> bool:
        """Whether the very process that wrote this record is alive."""
        return process_start(self.pid) == self.started


def url_of(host: str, port: int) -> str:
    """The address of a server that listens on `port` of `host`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def digest_of(name: str, host: str, port: int, store_uri: str) -> str:
    """The digest of a server's configuration."""
    return hashlib.sha256(json.dumps([name, host, port, store_uri]).encode()).hexdigest()[:16]


def write_record(home: Path, url: str, configuration: str) -> None:
    """Record in `home` that this process is its server."""
    pid = os.getpid()
    record = ServerRecord(pid, process_start(pid) or "", url, configuration)
    write_json(home / SERVER_FILE, asdict(record))


def read_record(home: Path) -> ServerRecord | None:
    """The server recorded in `home`, running or not; None if there is no readable record."""
    try:
        return ServerRecord(**json.loads((home / SERVER_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def process_start(pid: int) -> str | None:
    """When process `pid` started, in the system's own terms; None if it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The command name, in parentheses, may hold spaces: count fields after it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, ticks = fields[0], fields[19]
        return None if state in "ZX" else ticks
    listed = subprocess.run(  # noqa: S603 - the pid is a number
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    return None if not listed or listed[0].startswith("Z") else listed[1].strip()
