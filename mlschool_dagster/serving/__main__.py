"""The inference server as a process: ``python -m mlschool_dagster.serving --home DIR ...``.

A store whose URI holds a password and the token that clients must present come from the environment
(MLSCHOOL_CAPTURE_STORE, MLSCHOOL_ENDPOINT_TOKEN).
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.server_config import (
    CONNECTIONS,
    IDLE_SECONDS,
    STORE_VARIABLE,
    TOKEN_VARIABLE,
    ServerConfig,
)

log = logging.getLogger("mlschool_dagster.serving")


def main() -> int:
    """Serve until told to stop by SIGTERM or SIGINT; returns the exit code."""
    # A worker imports this module too, to find its beginning: it must stay light.
    from mlschool_dagster.capture.store import StoreUnavailableError, open_store
    from mlschool_dagster.serving.auth import require_token
    from mlschool_dagster.serving.logs import configure_logging
    from mlschool_dagster.serving.supervisor import serve

    configure_logging()
    config = _config()
    try:
        require_token(config.host, config.token)
        try:
            open_store(config.store_uri).close()
        except StoreUnavailableError as error:
            log.warning(str(error))
        return serve(config)
    except UserError as error:
        log.error(str(error))
        return 1


def _config() -> ServerConfig:
    parser = argparse.ArgumentParser(
        prog="python -m mlschool_dagster.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    store = os.environ.get(STORE_VARIABLE)
    parser.add_argument("--home", type=Path, required=True, help="folder of the deployments")
    parser.add_argument(
        "--store", default=store, required=store is None, help="URI of the capture store"
    )
    parser.add_argument("--name", required=True, help="the endpoint's name, kept in each capture")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument("--workers", type=_count, default=1, help="processes that answer")
    parser.add_argument(
        "--spill-megabytes",
        type=_count,
        default=256,
        help="captures to keep in the home folder while the store is unavailable",
    )
    parser.add_argument(
        "--hosts",
        default="",
        help="names of the server that requests may use, with commas between them, beside those of "
        "this machine and its own address",
    )
    parser.add_argument(
        "--connections", type=_count, default=CONNECTIONS, help="connections of each process"
    )
    parser.add_argument(
        "--keep-alive-seconds",
        type=_count,
        default=IDLE_SECONDS,
        help="how long a connection may be silent between two requests",
    )
    parser.add_argument(
        "--preconnect-seconds",
        type=_count,
        default=IDLE_SECONDS,
        help="how long a connection may be silent before its first request",
    )
    parser.add_argument("--access-log", action="store_true", help="log each request")
    given = parser.parse_args()
    return ServerConfig(
        home=given.home.absolute(),
        store_uri=given.store,
        name=given.name,
        host=given.host,
        port=given.port,
        workers=given.workers,
        spill_bytes=given.spill_megabytes * 1024**2,
        access_log=given.access_log,
        hosts=tuple(filter(None, (name.strip() for name in given.hosts.split(",")))),
        connections=given.connections,
        keep_alive_seconds=given.keep_alive_seconds,
        preconnect_seconds=given.preconnect_seconds,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
