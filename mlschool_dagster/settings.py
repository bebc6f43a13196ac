"""Where everything lives: one setting per location, by default all below one ignored folder.

Belongs here: names, meaning and defaults of the environment variables. Does not belong here:
secrets (a location with credentials reaches Dagster as an `EnvVar`, never as text) and anything
that a run configures.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlschool_dagster.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The repository's root."""

DEPLOYMENTS = ("local",)


@dataclass(frozen=True, slots=True)
class Settings:
    """The platform's locations on this machine; build one with `Settings.from_environment`."""

    deployment: str
    home: Path
    spec: Path
    data: str
    tracking_uri: str
    capture_store: str
    files: Path
    endpoint_host: str
    endpoint_port: int
    files_url: str
    """Address under which `files` is served, empty if it is not."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that `environment` asks for.

        Raises:
            UserError: a variable has a value that cannot be used.
        """
        home = _folder(environment.get("MLSCHOOL_HOME", ROOT / ".mlschool"))
        deployment = environment.get("DAGSTER_DEPLOYMENT", "local")
        if deployment not in DEPLOYMENTS:
            raise UserError(
                f"DAGSTER_DEPLOYMENT is {deployment!r}; use one of: {', '.join(DEPLOYMENTS)}."
            )
        return cls(
            deployment=deployment,
            home=home,
            spec=Path(environment.get("MLSCHOOL_SPEC", ROOT / "data" / "penguins.yaml")),
            data=environment.get("MLSCHOOL_DATA", str(ROOT / "data" / "penguins.csv")),
            tracking_uri=environment.get("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db"),
            capture_store=environment.get(
                "MLSCHOOL_CAPTURE_STORE", f"sqlite:///{home}/captures.db"
            ),
            files=_folder(environment.get("MLSCHOOL_FILES", home / "files")),
            endpoint_host=environment.get("MLSCHOOL_ENDPOINT_HOST", "127.0.0.1"),
            endpoint_port=_port(environment.get("MLSCHOOL_ENDPOINT_PORT", "8080")),
            files_url=environment.get("MLSCHOOL_FILES_URL", ""),
        )


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"MLSCHOOL_ENDPOINT_PORT is {text!r}; use a number from 1 to 65535.")
    return int(text)
