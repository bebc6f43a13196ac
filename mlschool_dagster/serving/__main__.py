"""The inference server as a process: ``python -m mlschool_dagster.serving --home DIR ...``."""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.app import create_app
from mlschool_dagster.serving.logs import configure_logging
from mlschool_dagster.serving.process import digest_of, url_of, write_record

GRACE_SECONDS = 20
"""How long requests under way may take once the server is told to stop."""
KEEP_ALIVE_SECONDS = 30
"""Longer than clients keep idle connections, so that none is closed under a request."""
MAX_CONCURRENCY = 512
"""Connections and requests beyond this are answered 503 at once."""

log = logging.getLogger("mlschool_dagster.serving")


def main() -> int:
    """Serve until told to stop by SIGTERM or SIGINT; returns the exit code."""
    arguments = _arguments()
    configure_logging()
    try:
        listener = _bind(arguments.host, arguments.port)
        open_store(arguments.store).close()
    except UserError as error:
        log.error(str(error))
        return 1
    url = url_of(arguments.host, arguments.port)
    write_record(
        arguments.home,
        url,
        digest_of(arguments.name, arguments.host, arguments.port, arguments.store),
    )
    log.info("server starts", extra={"url": url, "pid": os.getpid(), "endpoint": arguments.name})
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(arguments.home, arguments.store, arguments.name),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONCURRENCY,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    server.run(sockets=[listener])
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mlschool_dagster.serving", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of the deployment file")
    parser.add_argument("--store", required=True, help="URI of the capture store")
    parser.add_argument("--name", required=True, help="the endpoint's name, kept in each capture")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    return parser.parse_args()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"The endpoint cannot listen on {host}:{port} ({error.strerror}); choose another port."
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
