"""A server as processes: one that holds the port and watches, and workers that answer.

The supervisor listens before any worker does and goes on listening when one dies, so that requests
wait for its successor instead of being refused. It imports nothing that it does not need, because
it lives as long as the server and does no work.
"""

import fcntl
import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.server_config import OVERFLOW, ServerConfig, read_record, write_record
from mlschool_dagster.serving.worker_status import (
    SHORTAGE,
    delete_all_workers,
    delete_worker,
    is_shortage,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp

DRAIN_SECONDS = 18
"""How long requests under way may take once the server is asked to stop."""
END_SECONDS = 21.0
"""How long a worker may take to end, draining included, before it is killed."""
HUNG_SECONDS = 8
"""A worker that does not answer its supervisor for this long is replaced."""
BACKLOG = 2048
GARBAGE_OBJECTS = 10_000
"""New objects of a worker after which it searches for cycles of garbage. A request leaves hardly
any, and searching as often as Python does by default takes 6 % of a busy worker's time."""
STEADY_SECONDS = 5.0
"""Workers that die further apart do not die of how they begin."""
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
"""How long the next one is waited with after several that died at once: a second for each."""
OTHER_FILES = 256
"""Files that a worker may have open beside its connections."""
LOCK_FILE = "server.lock"
LOCK_SECONDS = 2.0
"""How long a server that is just ending may take to leave its home."""

log = logging.getLogger(__name__)


def serve(config: ServerConfig) -> int:
    """Serve until asked to stop by SIGTERM or SIGINT; returns the exit code.

    Raises:
        UserError: another server runs in the same home, or the address cannot be listened on.
    """
    with _only_server(config.home):
        listener = _listen(config.host, config.port)
        try:
            delete_all_workers(config.home)
            write_record(config)
        except OSError as error:
            listener.close()
            raise UserError(
                f"The home folder {config.home} cannot be written ({error.strerror}); free some "
                "space, or mend its permissions."
            ) from None
        log.info(
            "server starts", extra={"url": config.url, "pid": os.getpid(), "endpoint": config.name}
        )
        _allow_files(config.connections)
        supervisor = Supervisor(config, listener)
        supervisor.run()
    if supervisor.exit_code:
        log.error("server could not start; the errors before this one say why")
    else:
        log.info("server stopped")
    return supervisor.exit_code


class Supervisor(Multiprocess):
    """Keeps the workers of a server alive; uvicorn's own, with an eye on what the dead leave."""

    def __init__(self, config: ServerConfig, listener: socket.socket) -> None:
        super().__init__(_uvicorn_config(config), [listener])
        self._home = config.home
        self._has_served = False
        self._replaced_at = self._pause = self._resume_at = 0.0

    @property
    def exit_code(self) -> int:
        """1 if no worker could even start, else 0."""
        return int(any(process.exitcode == STARTUP_FAILURE for process in self.processes))

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died or hang, less and less often if they die at once."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout=HUNG_SECONDS):
                self._has_served = self._has_served or process.is_ready(timeout=HUNG_SECONDS)
            elif time.monotonic() >= self._resume_at:
                process.kill()
                process.join()
                if process.exitcode == STARTUP_FAILURE and not self._has_served:
                    # It would fail the same way each time.
                    self.should_exit.set()
                else:
                    self._replace(index, process)

    def _replace(self, index: int, dead: Process) -> None:
        now = time.monotonic()
        is_steady = now - self._replaced_at > self._pause + STEADY_SECONDS
        self._pause = 0.0 if is_steady else min(self._pause + PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._replaced_at, self._resume_at = now, now + self._pause
        if dead.pid is not None:
            delete_worker(self._home, dead.pid)
        try:
            successor = Process(self.config, self.sockets)
            successor.start()
        except (OSError, RuntimeError) as error:
            # No process is to be had: those that live go on, and the next try may fare better.
            log.error("no worker can be started", extra={"reason": str(error)})
            return
        self.processes[index] = successor
        log.warning("worker replaced", extra={"pid": dead.pid})

    def terminate_all(self) -> None:
        """Ask the workers to end, and let nobody wait for an answer that will not come."""
        super().terminate_all()
        for listener in self.sockets:
            listener.close()

    def join_all(self) -> None:
        """Wait until the workers have ended, but not for ever."""
        deadline = time.monotonic() + END_SECONDS
        for process in self.processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.process.is_alive():
                log.error("worker did not end in time", extra={"pid": process.pid})
                process.process.kill()
        super().join_all()


def worker_app(config: ServerConfig) -> "ASGIApp":
    """The application of a worker, made in the worker's own process."""
    from mlschool_dagster.serving.logs import configure_logging

    configure_logging()
    gc.set_threshold(GARBAGE_OBJECTS)
    threading.Thread(target=_end_with_supervisor, name="orphan", daemon=True).start()
    try:
        from mlschool_dagster.serving.app import create_app
        from mlschool_dagster.serving.protocol import LimitedProtocol, Limits

        # uvicorn makes a connection's protocol without any settings of ours.
        LimitedProtocol.limits = Limits(
            connections=config.connections,
            keep_alive_seconds=config.keep_alive_seconds,
            preconnect_seconds=config.preconnect_seconds,
        )
        return create_app(config)
    except Exception as error:
        if is_shortage(error):
            log.error("a worker cannot begin", exc_info=error)
            sys.exit(SHORTAGE)
        # It would fail the same way each time, so the supervisor must not try again.
        log.error(str(error), exc_info=None if isinstance(error, UserError) else error)
        sys.exit(STARTUP_FAILURE)


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _allow_files(connections: int) -> None:
    """Let each process open what its connections need, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OVERFLOW * connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _uvicorn_config(config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        partial(worker_app, config),
        factory=True,
        workers=config.workers,
        loop="uvloop",
        http="mlschool_dagster.serving.protocol:LimitedProtocol",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=HUNG_SECONDS,
    )


@contextmanager
def _only_server(home: Path) -> Iterator[None]:
    """Keep every other server out of `home` until the block ends, or this process does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK_FILE).open("a") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    record = read_record(home)
                    other = "" if record is None else f" (process {record.pid} at {record.url})"
                    raise UserError(
                        f"Another server{other} runs with the home folder {home}; stop it, or "
                        "give this one a folder of its own."
                    ) from None
            time.sleep(LOCK_SECONDS / 20)
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"The endpoint cannot listen on {host}:{port} ({error.strerror}); choose another port."
        ) from None
    return listener
