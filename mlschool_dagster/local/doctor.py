"""The command ``doctor``: what of the environment is missing or odd, in sentences.

It changes nothing.
"""

import difflib
import os
import re
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from mlschool_dagster.clock import CLOCK
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import PORTS, Registered
from mlschool_dagster.local.processes import is_free
from mlschool_dagster.settings import (
    PLATFORM_RECORD,
    PREFIXES,
    ROOT,
    Settings,
    running_environment,
)

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest Python that the project supports."""
SQLITE = (3, 24, 0)
"""The oldest SQLite with the statements that the stores use (upserts)."""
DISK_BYTES = 2 * 1024**3
MEMORY_BYTES = 1024**3
ANSWER_SECONDS = 5.0


class Level(StrEnum):
    """Severity of a finding: only `WRONG` lets the command fail."""

    FINE = "fine"
    ODD = "odd"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about the environment."""

    level: Level
    text: str


EnvFile = Mapping[str, str | None]
"""Variables of ``.env``; None for a name without a value."""


def examine(environment: Mapping[str, str], env_file: EnvFile) -> Iterator[Finding]:
    """All findings for the variables `environment`, of which `env_file` has those of ``.env``."""
    yield _python()
    yield _sqlite()
    yield from _variables(environment, env_file)
    yield from _clock(environment)
    yield _memory()
    try:
        settings = Settings.from_environment(environment)
    except UserError as error:
        yield Finding(Level.WRONG, str(error))
        return
    yield from _state(settings)
    yield from _processes(settings)
    yield from _ports(settings)
    yield from _reachable(settings)


def _python() -> Finding:
    version = sys.version_info[:2]
    python = f"Python {version[0]}.{version[1]} ({sys.executable})"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding(Level.FINE, f"{python}.")
    lowest, highest = (".".join(map(str, each)) for each in PYTHONS)
    advice = f"use one from {lowest} to {highest}: make PYTHON=/path/to/python"
    return Finding(Level.WRONG, f"{python} is not supported; {advice}.")


def _sqlite() -> Finding:
    sqlite = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info >= SQLITE:
        return Finding(Level.FINE, f"{sqlite}.")
    lowest = ".".join(map(str, SQLITE))
    return Finding(Level.WRONG, f"{sqlite} is too old; use a Python that was built with {lowest}.")


def known_variables() -> set[str]:
    """The variables that `.env.example` explains."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return set(re.findall(r"^# ([A-Z_]+)=", text, flags=re.MULTILINE))


def _variables(environment: Mapping[str, str], env_file: EnvFile) -> Iterator[Finding]:
    known = known_variables()
    for name in sorted({*environment, *env_file}):
        place = ".env" if name in env_file else "The environment"
        like = difflib.get_close_matches(name, known, 1, cutoff=0.85)
        if name in env_file and env_file[name] is None:
            text = f".env names {name} without a value; write {name}=value."
            yield Finding(Level.WRONG, text)
        elif name not in known and (like or name.startswith(PREFIXES[0])):
            meant = f"; {like[0]} may be meant" if like else "; .env.example lists them"
            yield Finding(Level.WRONG, f"{place} sets {name}, which is no setting{meant}.")
    if env_file:
        yield Finding(Level.FINE, f".env sets {', '.join(sorted(env_file))}.")


def _clock(environment: Mapping[str, str]) -> Iterator[Finding]:
    now = datetime.now(UTC)
    written = datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)
    if now < written - timedelta(days=1):
        text = (
            f"The clock says {now:%Y-%m-%d %H:%M} UTC, which is before these files were written; "
            "set it, or captures land in windows that are no more."
        )
        yield Finding(Level.WRONG, text)
    else:
        yield Finding(Level.FINE, f"The clock says {now:%Y-%m-%d %H:%M} UTC.")
    if environment.get(CLOCK):
        yield Finding(Level.ODD, f"{CLOCK} is set: the platform lives at another time.")


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    text = f"{free / 1024**3:.1f} GB of memory are free"
    if free >= MEMORY_BYTES:
        return Finding(Level.FINE, f"{text}.")
    return Finding(Level.ODD, f"{text}; the platform takes about 1 GB, end something else.")


def _state(settings: Settings) -> Iterator[Finding]:
    existing = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        text = f"The state folder {settings.home} cannot be written; choose another: MLSCHOOL_HOME."
        yield Finding(Level.WRONG, text)
    free = shutil.disk_usage(existing).free
    text = f"{free / 1024**3:.1f} GB of disk are free for the state folder {settings.home}"
    if free >= DISK_BYTES:
        yield Finding(Level.FINE, f"{text}.")
    else:
        yield Finding(Level.WRONG, f"{text}; make room, or choose another: MLSCHOOL_HOME.")
    if settings.dagster_home != settings.home / "dagster":
        text = f"DAGSTER_HOME is {settings.dagster_home}: Dagster's runs are kept there."
        yield Finding(Level.ODD, text)
    for path, variable in ((settings.spec, "MLSCHOOL_SPEC"), (settings.data, "MLSCHOOL_DATA")):
        if "://" not in str(path) and not Path(path).expanduser().exists():
            yield Finding(Level.WRONG, f"There is nothing at {path}; see {variable}.")


def _processes(settings: Settings) -> Iterator[Finding]:
    try:
        known = Registered.load(settings.home / PLATFORM_RECORD)
    except (ValueError, KeyError, TypeError):
        text = f"{settings.home / PLATFORM_RECORD} cannot be read; run make stop and delete it."
        yield Finding(Level.WRONG, text)
        return
    if known and known.owner.find():
        text = f"A platform runs on this state folder: {known.platform.dagster_url}."
        yield Finding(Level.FINE, text)
        return
    left = [child.pid for child in known.children if child.find()] if known else []
    if left:
        pids = ", ".join(map(str, left))
        text = f"A platform that was killed left processes running ({pids}); run make stop."
        yield Finding(Level.WRONG, text)


def _ports(settings: Settings) -> Iterator[Finding]:
    if running_environment(settings.home):
        # They are its own.
        return
    for name, port in {**PORTS, "endpoint": settings.endpoint_port}.items():
        if not is_free(port):
            text = f"Port {port}, which {name} would use, is taken by {_holder(port)}"
            yield Finding(Level.ODD, f"{text}; the next free one is used instead.")


def _holder(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.pid and local and local.port == port:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "a program of another user"


def _reachable(settings: Settings) -> Iterator[Finding]:
    for variable, uri, check in (
        ("MLFLOW_TRACKING_URI", settings.tracking_uri, _http),
        ("MLSCHOOL_CAPTURE_STORE", settings.capture_store, _postgres),
        ("MLSCHOOL_HISTORY", settings.history, _postgres),
        ("MLSCHOOL_ENDPOINT_URL", settings.endpoint_url, _http),
    ):
        failure = check(str(uri))
        # The address may hold a password.
        if failure == "":
            yield Finding(Level.FINE, f"What {variable} names answers.")
        elif failure is not None:
            yield Finding(Level.WRONG, f"What {variable} names does not answer ({failure}).")


def _http(uri: str) -> str | None:
    """Reason why the server is unreachable, empty if it answers; None for another kind of URI."""
    import httpx

    if not uri.startswith(("http://", "https://")):
        return None
    try:
        httpx.get(uri, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
    return ""


def _postgres(uri: str) -> str | None:
    """As `_http`, for a PostgreSQL server, which must accept a connection."""
    if not uri.startswith(("postgres://", "postgresql://")):
        return None
    try:
        parts = urlsplit(uri)
        address = (parts.hostname or "127.0.0.1", parts.port or 5432)
        socket.create_connection(address, ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or type(error).__name__
    return ""


def report(findings: Iterator[Finding], say: Callable[[str], None]) -> None:
    """Print all findings.

    Raises:
        UserError: something is wrong.
    """
    wrong = 0
    for finding in findings:
        say(f"{finding.level:6} {finding.text}")
        wrong += finding.level is Level.WRONG
    if wrong:
        raise UserError(f"{wrong} of these must be fixed; see the lines marked {Level.WRONG}.")
