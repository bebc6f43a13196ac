"""What should serve: the desired state that every worker follows, and how it came to that.

The deployments of an endpoint are one append-only file in its home, one line each; the last line is
what should serve now. So the state and its history cannot disagree, whatever dies in between.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from mlschool_dagster.atomic import sync_folder
from mlschool_dagster.clock import utc_now
from mlschool_dagster.errors import UserError

DEPLOYMENTS_FILE = "deployments.jsonl"


@dataclass(frozen=True, slots=True)
class Release:
    """A model version and the folder of its compiled model."""

    version: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """Which versions serve, and in which role; without a primary, none does.

    The canary answers ``canary_share`` of the requests, in [0, 1]. The shadow predicts on each
    request and never answers. ``sampling_share`` of the requests, in (0, 1], are captured.

    Raises:
        UserError: the shares and versions contradict each other.
    """

    primary: Release | None
    canary: Release | None = None
    canary_share: float = 0.0
    shadow: Release | None = None
    sampling_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what could not be carried out."""
        if not 0.0 <= self.canary_share <= 1.0 or (self.canary is None) != (not self.canary_share):
            raise UserError(
                f"A canary share of {self.canary_share:g} does not fit; give a canary and a share "
                "above 0 and up to 1 together, or neither."
            )
        if not 0.0 < self.sampling_share <= 1.0:
            raise UserError(
                f"A sampling share of {self.sampling_share:g} cannot be used; choose one above 0 "
                "and up to 1."
            )

    @property
    def releases(self) -> list[Release]:
        """The versions that the plan names, the primary first, each once."""
        named = (self.primary, self.canary, self.shadow)
        return list(dict.fromkeys(release for release in named if release is not None))


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan from ``at`` (UTC) on, by whom and why.

    The ``candidate`` is loaded beside the plan, to be tested before it takes traffic. ``id`` tells
    one deployment from the next, even of the same plan.
    """

    plan: Plan
    by: str = ""
    reason: str = ""
    candidate: Release | None = None
    at: datetime = field(default_factory=utc_now)
    id: str = field(default_factory=lambda: uuid4().hex)


class DeploymentLog:
    """Reads the deployments of the endpoint in `home` as they come, each line once.

    What follows the last line's end was cut off by a crash, before anyone was told of it, and is
    overlooked; the next deployment takes its place.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / DEPLOYMENTS_FILE
        self._offset = 0
        self._last_line = b""

    def news(self) -> list[Deployment]:
        """The deployments since the last call, in order; all of a file that was replaced.

        Raises:
            UserError: the file is damaged, or cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                # A file that takes the place of one that was deleted may have its inode.
                file.seek(self._offset - len(self._last_line))
                if file.read(len(self._last_line)) != self._last_line:
                    self._offset = file.seek(0)
                lines = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read ({error.strerror}); give its reader access to it."
            ) from None
        lines = lines[: lines.rfind(b"\n") + 1]
        try:
            deployments = [_deployment(json.loads(line)) for line in lines.splitlines()]
        except (ValueError, KeyError, TypeError, UserError):
            raise UserError(
                f"{self._path} is damaged; move it away and deploy a version anew."
            ) from None
        if deployments:
            self._offset += len(lines)
            self._last_line = lines.splitlines(keepends=True)[-1]
        return deployments


def read_deployments(home: Path) -> list[Deployment]:
    """Every deployment of the endpoint in `home`, the present one last.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    return DeploymentLog(home).news()


def read_deployment(home: Path) -> Deployment | None:
    """What should serve by the file in `home`; None if nothing was ever deployed.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    deployments = read_deployments(home)
    return deployments[-1] if deployments else None


def record_deployment(home: Path, deployment: Deployment) -> None:
    """Make `deployment` what should serve; durable on return.

    Only one process at a time may record: who deploys holds the target's lock.

    Raises:
        UserError: the file cannot be written.
    """
    path = home / DEPLOYMENTS_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a+b") as file:
            file.truncate(_complete_size(file))
            file.write(json.dumps(_document(deployment)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(home)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room for it, or mend its "
            "permissions."
        ) from None


def previous_primary(deployments: Sequence[Deployment]) -> Release | None:
    """The primary before the present one; None if there was no other."""
    primaries = [d.plan.primary for d in deployments if d.plan.primary is not None]
    earlier = [p for p in primaries if p.version != primaries[-1].version]
    return earlier[-1] if earlier else None


def _complete_size(file: BinaryIO) -> int:
    """The size of `file` up to the end of its last complete line."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _document(deployment: Deployment) -> dict[str, Any]:
    plan = deployment.plan
    return {
        "id": deployment.id,
        "at": deployment.at.isoformat(),
        "by": deployment.by,
        "reason": deployment.reason,
        "primary": _entry(plan.primary),
        "canary": _entry(plan.canary),
        "canary_share": plan.canary_share,
        "shadow": _entry(plan.shadow),
        "candidate": _entry(deployment.candidate),
        "sampling_share": plan.sampling_share,
    }


def _deployment(document: dict[str, Any]) -> Deployment:
    return Deployment(
        plan=Plan(
            primary=_release(document["primary"]),
            canary=_release(document["canary"]),
            canary_share=float(document["canary_share"]),
            shadow=_release(document["shadow"]),
            sampling_share=float(document["sampling_share"]),
        ),
        by=str(document["by"]),
        reason=str(document["reason"]),
        candidate=_release(document["candidate"]),
        at=datetime.fromisoformat(document["at"]),
        id=str(document["id"]),
    )


def _entry(release: Release | None) -> dict[str, str] | None:
    if release is None:
        return None
    return {"version": release.version, "folder": str(release.folder.absolute())}


def _release(entry: dict[str, str] | None) -> Release | None:
    return None if entry is None else Release(str(entry["version"]), Path(entry["folder"]))
