"""Endpoints on this machine to test, and helpers to inspect them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mlschool_dagster.deployment.endpoint import EndpointStatus, Verify, VersionFiles, accept
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster_tests.serving.server import release, server_config, store_uri


def endpoint_of(home: Path, port: int, **settings: Any) -> LocalEndpoint:
    config = {"store_uri": store_uri(home), **settings}
    return LocalEndpoint(server_config(home, port=port, **config))


def version_files(home: Path, *versions: str) -> dict[str, VersionFiles]:
    """Versions with weights drawn from their numbers, in folders of `home`."""
    return {version: VersionFiles.of(release(home, version).folder) for version in versions}


def deploy(endpoint: LocalEndpoint, home: Path, version: str, verify: Verify = accept) -> int:
    """Deploy `version`, made anew in `home`, and return the server's pid."""
    return deploy_files(endpoint, version_files(home, version), verify)


def deploy_files(
    endpoint: LocalEndpoint, files: Mapping[str, VersionFiles], verify: Verify = accept
) -> int:
    """Deploy the only version of `files` and return the server's pid."""
    (version,) = files
    status = endpoint.deploy(Plan(primary=version), files, verify=verify)
    return int(status.details["pid"])


def another(endpoint: LocalEndpoint, **changes: Any) -> LocalEndpoint:
    """Another object for the endpoint of `endpoint`."""
    return LocalEndpoint(replace(endpoint.config, **changes))


def served(endpoint: LocalEndpoint) -> EndpointStatus:
    """The status of an endpoint that serves."""
    status = endpoint.status()
    assert status.serving is not None
    return status


def spoil(files: VersionFiles) -> None:
    """Let the version predict nothing of sense."""
    with np.load(files.folder / "compiled.npz") as arrays:
        np.savez(files.folder / "compiled.npz", **{**arrays, "bias_1": np.full(3, np.nan)})


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def record_of(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "server.json").read_text()))
