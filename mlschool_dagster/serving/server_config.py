"""Configuration of a server, and the record of its running process."""

import hashlib
import hmac
import json
import os
import secrets
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlschool_dagster.atomic import replacing

TOKEN_VARIABLE = "MLSCHOOL_ENDPOINT_TOKEN"  # noqa: S105 - names the variable that holds it
STORE_VARIABLE = "MLSCHOOL_CAPTURE_STORE"
"""Environment variables of the server: what may hold a secret does not belong on a command line,
which every user of the machine can read."""

OVERFLOW = 4
"""Connections, as a multiple of those that a worker may have, above which new ones are dropped
unread; the others are answered 503."""
SERVER_FILE = "server.json"
KEY_FILE = "server.key"
LOG_FILE = "server.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Configuration of a server.

    ``home`` holds its desired state and whatever it keeps, ``store_uri`` is where it captures
    (nowhere if it is empty), ``name`` is kept with each capture. ``workers`` processes share the
    port. While the store is unavailable, ``home`` keeps up to ``spill_bytes`` of captures.
    ``token`` is what requests must present, if it is set. ``hosts`` are names of the server that
    requests may use beside ``host`` and those of this machine. A worker has ``connections``, each
    of which may be silent for ``preconnect_seconds`` at first and for ``keep_alive_seconds``
    between two requests.
    """

    home: Path
    store_uri: str = field(repr=False)
    name: str
    host: str
    port: int
    workers: int
    spill_bytes: int
    hosts: tuple[str, ...]
    connections: int
    keep_alive_seconds: int
    preconnect_seconds: int
    access_log: bool = False
    token: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The address at which the server listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def digest(self) -> str:
        """Differs between configurations. Never written: secrets could be guessed from it."""
        settings = {**asdict(self), "home": str(self.home)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server process: ``started`` distinguishes its pid from a later process with the same pid.

    ``configuration`` shows whether it was started with the same settings as another; two such
    servers are interchangeable. Settings hold secrets, so it is a digest that only who has the key
    in the server's home can compare with anything.
    """

    pid: int
    started: str
    url: str
    configuration: str

    @property
    def is_running(self) -> bool:
        """Whether the very process that wrote this record is alive."""
        return process_start(self.pid) == self.started

    def is_of(self, config: ServerConfig) -> bool:
        """Whether the server was started with `config`."""
        try:
            key = (config.home / KEY_FILE).read_bytes()
        except OSError:
            return False
        return hmac.compare_digest(self.configuration, _keyed(config, key))


def write_record(config: ServerConfig) -> None:
    """Record in the server's home that this process is it."""
    pid = os.getpid()
    key = secrets.token_bytes(32)
    _write_private(config.home / KEY_FILE, key)
    record = ServerRecord(pid, process_start(pid) or "", config.url, _keyed(config, key))
    _write_private(config.home / SERVER_FILE, json.dumps(asdict(record)).encode())


def _keyed(config: ServerConfig, key: bytes) -> str:
    return hmac.new(key, config.digest.encode(), hashlib.sha256).hexdigest()


def _write_private(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(content)


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
