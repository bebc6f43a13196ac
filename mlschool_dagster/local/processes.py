"""Child processes: starting, waiting until one answers, and stopping without a leftover."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlschool_dagster.errors import UserError

STOP_SECONDS = 10.0
READY_SECONDS = 120.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """The identity of the running process `pid`."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1
        except psutil.NoSuchProcess:
            return None
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None


@dataclass(frozen=True, slots=True)
class Service:
    """A started child process with its log."""

    name: str
    process: subprocess.Popen[bytes]
    identity: Identity
    log: Path

    @classmethod
    def start(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> "Service":
        """Start `command` in a session of its own, so that Ctrl-C reaches only its owner."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, process, Identity.of(process.pid), log)

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Wait until the service answers.

        Raises:
            UserError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not answers():
            if self.process.poll() is not None:
                raise UserError(f"{self.name} ended while it started; see {self.log}.")
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.name} did not answer within {READY_SECONDS:.0f} s; see {self.log}."
                )
            time.sleep(POLL_SECONDS)


def stop_tree(identity: Identity) -> None:
    """Stop a process and all that it started: asked first, killed after a while.

    What it started is found even after it has died itself, if it led a session (as each `Service`
    does).
    """
    family = _family(identity)
    process = identity.find()
    if process is not None:
        _signal(process, signal.SIGINT)
        psutil.wait_procs([process], timeout=STOP_SECONDS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            _signal(member, number)
        _, family = psutil.wait_procs(family, timeout=STOP_SECONDS / 4)


def _family(identity: Identity) -> list[psutil.Process]:
    leader = identity.find()
    if leader is None and psutil.pid_exists(identity.pid):
        # Another program has got the pid: whatever has that session now is not ours.
        return []
    descendants = [] if leader is None else [leader, *leader.children(recursive=True)]
    session = [process for process in psutil.process_iter() if _session(process) == identity.pid]
    return list({process.pid: process for process in (*descendants, *session)}.values())


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(preferred: int, avoid: Sequence[int] = ()) -> int:
    """`preferred`, or the next port above it that is free and not in `avoid`.

    Raises:
        UserError: a hundred ports in a row are taken.
    """
    for port in range(preferred, preferred + 100):
        if port not in avoid and is_free(port):
            return port
    raise UserError(f"No port from {preferred} to {preferred + 99} is free; stop what uses them.")
