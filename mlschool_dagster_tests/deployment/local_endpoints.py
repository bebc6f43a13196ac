"""Endpoints on this machine to test, and how to look at them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mlschool_dagster.deployment.endpoint import EndpointStatus
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.serving.desired_state import Plan, Release
from mlschool_dagster.serving.server_config import ServerConfig
from mlschool_dagster_tests.serving.server import (
    release,
    store_uri,
)


def target_of(home: Path, port: int, **settings: Any) -> LocalEndpoint:
    return LocalEndpoint(
        ServerConfig(
            **{"store_uri": store_uri(home), "name": "penguins", **settings}, home=home, port=port
        )
    )


def deploy(target: LocalEndpoint, home: Path, version: str) -> int:
    """Deploy `version` and return the server's pid."""
    return deploy_release(target, release(home, version))


def deploy_release(target: LocalEndpoint, wanted: Release) -> int:
    status = target.deploy(Plan(wanted), "a test", "because", lambda step: None)
    return int(status.details["pid"])


def target_of_same(target: LocalEndpoint, **changes: Any) -> LocalEndpoint:
    """Another client of the endpoint of `target`."""
    return LocalEndpoint(replace(target.config, **changes))


def served(target: LocalEndpoint) -> EndpointStatus:
    status = target.status()
    assert status is not None
    return status


def spoil(wanted: Release) -> None:
    """Let the version predict nothing of sense."""
    with np.load(wanted.folder / "compiled.npz") as arrays:
        np.savez(wanted.folder / "compiled.npz", **{**arrays, "bias_1": np.full(3, np.nan)})


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def record_of(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "server.json").read_text()))
