"""What should serve: the desired state that a server follows, kept in one file of its home."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlschool_dagster.atomic import replacing
from mlschool_dagster.errors import UserError

DEPLOYMENT_FILE = "deployment.json"


@dataclass(frozen=True, slots=True)
class Release:
    """A model version and the folder of its compiled model."""

    version: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should serve; ``id`` tells one wish from the next, even for the same version."""

    primary: Release
    id: str = field(default_factory=lambda: uuid4().hex)


def read_deployment(home: Path) -> Deployment | None:
    """What should serve by the deployment file in `home`; None if there is no such file.

    Raises:
        UserError: the file is not a deployment.
    """
    path = home / DEPLOYMENT_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        primary = document["primary"]
        release = Release(str(primary["version"]), Path(primary["folder"]))
        return Deployment(release, str(document["id"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a deployment; deploy a version anew.") from None


def write_deployment(home: Path, deployment: Deployment | None) -> None:
    """Make `deployment` what should serve; None takes the file away."""
    if deployment is None:
        (home / DEPLOYMENT_FILE).unlink(missing_ok=True)
        return
    primary = deployment.primary
    write_json(
        home / DEPLOYMENT_FILE,
        {
            "id": deployment.id,
            "primary": {"version": primary.version, "folder": str(primary.folder.absolute())},
        },
    )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` so that a reader, or a crash, finds the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2), encoding="utf-8")
