"""Child processes: starting, waiting until one answers, and stopping without a leftover."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import psutil

from mlschool_dagster.errors import UserError
from mlschool_dagster.identity import Identity as Identity

if TYPE_CHECKING:
    from filelock import BaseFileLock

STOP_SECONDS = 10.0
READY_SECONDS = 120.0
POLL_SECONDS = 0.2
CHECK_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Between two starts of a service that ends again and again."""


@dataclass(frozen=True, slots=True)
class Service:
    """A started child process with its log; one that ``needs_child`` lets a child do its work."""

    name: str
    process: subprocess.Popen[bytes]
    identity: Identity
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path | None
    needs_child: bool

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        folder: Path | None = None,
        *,
        needs_child: bool = False,
    ) -> "Service":
        """Start `command` in a session of its own, so that Ctrl-C reaches only its owner.

        `environment` is all that it gets. It works in `folder`, or where its owner does.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        identity = Identity.of(process.pid)
        return cls(name, process, identity, command, environment, log, folder, needs_child)

    def started_again(self) -> "Service":
        """The same service as a new process."""
        return Service.start(
            self.name,
            self.command,
            self.environment,
            self.log,
            self.folder,
            needs_child=self.needs_child,
        )

    def has_child(self) -> bool:
        """Whether a process that it started runs."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return False
        return any(map(_runs, children))

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


@contextmanager
def kept_running(services: list[Service], changed: Callable[[Service], None]) -> Iterator[None]:
    """As long as the block lasts, start each of `services` again whenever it has ended.

    One that needs a child has ended with it. The list holds the services as they run;
    `changed` is called after each start. A service that ends again and again rests in between, up
    to `LONGEST_PAUSE_SECONDS`.
    """
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(services, changed, over), name="keeper")
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def _keep(
    services: list[Service], changed: Callable[[Service], None], over: threading.Event
) -> None:
    parents: set[Identity] = set()
    starts = dict.fromkeys((service.name for service in services), 0)
    not_before = dict.fromkeys(starts, 0.0)
    while not over.wait(CHECK_SECONDS):
        for position, service in enumerate(services):
            if service.process.poll() is None:
                if not service.needs_child:
                    continue
                if service.has_child():
                    parents.add(service.identity)
                    continue
                if service.identity not in parents:
                    continue
                # What else it started is left alone: runs may well end as they should.
                service.process.kill()
                service.process.wait()
            now = time.monotonic()
            if now < not_before[service.name]:
                continue
            starts[service.name] += 1
            pause = min(CHECK_SECONDS * 2 ** starts[service.name], LONGEST_PAUSE_SECONDS)
            not_before[service.name] = now + pause
            services[position] = service.started_again()
            changed(services[position])


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def claimed_port(preferred: int, avoid: Sequence[int] = ()) -> "tuple[int, BaseFileLock]":
    """A port as from `free_port` that no other platform of this machine has claimed.

    Returns:
        The port, and the claim, which is held until it is released or its process ends.
    """
    from filelock import FileLock, Timeout

    claimed = list(avoid)
    while True:
        port = free_port(preferred, claimed)
        claim = FileLock(Path(gettempdir()) / f"mlschool-port-{port}.lock")
        try:
            claim.acquire(timeout=0)
        except (Timeout, OSError):
            # Another platform's, perhaps of another user.
            claimed.append(port)
        else:
            return port, claim


def free_port(preferred: int, avoid: Sequence[int] = ()) -> int:
    """`preferred`, or the next port above it that is free and not in `avoid`.

    Raises:
        UserError: a hundred ports in a row are taken.
    """
    for port in range(preferred, preferred + 100):
        if port not in avoid and is_free(port):
            return port
    raise UserError(f"No port from {preferred} to {preferred + 99} is free; stop what uses them.")
