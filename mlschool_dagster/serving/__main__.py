"""The inference server as a process, for an endpoint or in a container.

``python -m mlschool_dagster.serving --home DIR ...`` serves what the desired state in DIR says.
With ``--model DIR`` it serves exactly the version in that folder, which it only reads, as managed
services start it: a gateway before it authenticates clients, so that no token is needed, and
nothing is captured unless a store is given.

A store whose URI holds a password and the token that clients must present come from the environment
(MLSCHOOL_CAPTURE_STORE, MLSCHOOL_ENDPOINT_TOKEN).
"""

import argparse
import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.server_config import (
    STORE_VARIABLE,
    TOKEN_VARIABLE,
    ServerConfig,
)

UNKNOWN_VERSION = "unknown"
OPTIONS = MappingProxyType(
    {
        "host": "endpoint_host",
        "port": "endpoint_port",
        "workers": "endpoint_workers",
        "spill-megabytes": "spill_megabytes",
        "hosts": "hosts",
        "connections": "endpoint_connections",
        "keep-alive-seconds": "endpoint_keep_alive",
        "preconnect-seconds": "endpoint_preconnect",
    }
)
"""The options that are settings, whose variables count where an option is not given."""

log = logging.getLogger("mlschool_dagster.serving")


def main() -> int:
    """Serve until asked to stop by SIGTERM or SIGINT; returns the exit code."""
    # A worker imports this module too, to find its beginning: it must stay light.
    from mlschool_dagster.capture.store import StoreUnavailableError, open_store
    from mlschool_dagster.serving.auth import require_token
    from mlschool_dagster.serving.logs import configure_logging
    from mlschool_dagster.serving.supervisor import serve

    configure_logging()
    given = _arguments()
    config = _config(given)
    try:
        with ExitStack() as stack:
            if given.model is None:
                require_token(config.host, config.token)
            else:
                home = stack.enter_context(TemporaryDirectory(prefix="mlschool-serving-"))
                config = replace(config, home=Path(home))
                _serve_only(config.home, given.model, given.model_version)
            if config.store_uri:
                try:
                    open_store(config.store_uri).close()
                except StoreUnavailableError as error:
                    log.warning(str(error))
            return serve(config)
    except UserError as error:
        log.error(str(error))
        return 1


def _serve_only(home: Path, model: Path, version: str | None) -> None:
    """Let the server in `home` serve the version folder in `model`.

    Raises:
        UserError: there is none, or more than one.
    """
    from mlschool_dagster.capture.records import Role
    from mlschool_dagster.serving.desired_state import (
        DesiredState,
        VersionFolder,
        write_desired_state,
    )

    # Services mount a folder that has the version folder in it, at a depth of their own.
    folders = [path.parent for path in sorted(model.rglob("compiled.npz"))]
    if len(folders) != 1:
        many = "several version folders" if folders else "no version folder"
        raise UserError(
            f"{model.absolute()} has {many}; give --model the folder of one version, as "
            "it is published."
        )
    numbered = [part for part in folders[0].absolute().parts if part.isdecimal()]
    number = version or (numbered[-1] if numbered else UNKNOWN_VERSION)
    desired = DesiredState({Role.PRIMARY: VersionFolder(number, folders[0])})
    write_desired_state(home, desired)


def _arguments() -> argparse.Namespace:
    from mlschool_dagster.settings import Settings, variable

    parser = argparse.ArgumentParser(
        prog="python -m mlschool_dagster.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    store = os.environ.get(STORE_VARIABLE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--home", type=Path, help="folder of the desired state")
    what.add_argument("--model", type=Path, help="version folder that is all to be served")
    parser.add_argument(
        "--model-version",
        help="number of the version in --model; by default that in its path",
    )
    parser.add_argument("--store", default=store, help="URI of the capture store")
    parser.add_argument("--name", required=True, help="the endpoint's name, kept in each capture")
    for option, name in OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            type=partial(_checked, name),
            default=os.environ.get(variable(name)) or Settings.model_fields[name].default,
            help=f"{Settings.model_fields[name].description} ({variable(name)})",
        )
    parser.add_argument("--access-log", action="store_true", help="log each request")
    given = parser.parse_args()
    if given.model is None and not given.store:
        parser.error(f"give --store, or set {STORE_VARIABLE}")
    return given


def _config(given: argparse.Namespace) -> ServerConfig:
    return ServerConfig(
        home=(given.home or Path()).absolute(),
        store_uri=given.store or "",
        name=given.name,
        host=given.host,
        port=given.port,
        workers=given.workers,
        spill_bytes=given.spill_megabytes * 1024**2,
        access_log=given.access_log,
        hosts=given.hosts,
        connections=given.connections,
        keep_alive_seconds=given.keep_alive_seconds,
        preconnect_seconds=given.preconnect_seconds,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )


def _checked(name: str, text: str) -> Any:
    """The value of the setting `name` that `text` stands for."""
    from mlschool_dagster.settings import checked

    try:
        return checked(name, text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
