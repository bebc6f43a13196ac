"""Starting and ending a server process, and finding out who holds a port."""

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from mlschool_dagster.clock import CLOCK
from mlschool_dagster.credentials import environment_of_child
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.process import ServerRecord

POLL_SECONDS = 0.05
PORT_SECONDS = 3.0


def start_detached(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that it outlives this process.

    It gets `environment`, and of this process's variables what Python and PostgreSQL's driver need.
    What the command prints is appended to the file `log`.
    """
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the command is this program's own
            command,
            env={**environment_of_child("MLSCHOOL_HOME", CLOCK, "PG*"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(record: ServerRecord, grace: float) -> None:
    """End the process of `record`: ask, and after `grace` seconds insist."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        if record.is_running:
            os.kill(record.pid, sign)
        while record.is_running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def require_free_port(host: str, port: int) -> None:
    """Make sure that a server can listen on `port` of `host`.

    Raises:
        UserError: another program listens there (named if the system tells it), or the address is
            not this machine's.
    """
    # The workers of a server that has just been killed hold its port for a moment longer.
    deadline = time.monotonic() + PORT_SECONDS
    while (error := _bind_error(host, port)) is not None:
        if error.errno != errno.EADDRINUSE:
            raise UserError(
                f"The endpoint cannot listen on {host}:{port} ({error.strerror}); "
                "give it another address."
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"Port {port} of {host} is taken by {_listener(port)}; "
                "end it or give the endpoint another port."
            )
        time.sleep(POLL_SECONDS)


def _bind_error(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _listener(port: int) -> str:
    """Who listens on `port`, as a phrase."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr if connection.status == psutil.CONN_LISTEN else None
            if address and address.port == port and connection.pid is not None:
                name = psutil.Process(connection.pid).name()
                return f"{name} (process {connection.pid})"
    except psutil.Error:
        # The system tells only its administrator, or the program has just ended.
        pass
    return "another program"
