"""The desired state of a server: which versions it should serve, in one file.

Workers follow the file. Only the server and the endpoint that controls it know it. Who requested a
change and why is in the deployment ledger (`mlschool_dagster.deployment.ledger`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.records import Role
from mlschool_dagster.clock import utc_now
from mlschool_dagster.errors import UserError

DESIRED_STATE_FILE = "desired_state.json"


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """A model version and the folder of its compiled model."""

    version: str
    folder: Path


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The version of each role; without a primary, none takes traffic.

    The canary answers ``canary_share`` of the requests, in [0, 1]. The shadow predicts on each
    captured request and never answers. A candidate is loaded beside them, to be tested before it
    takes traffic. ``sampling_share`` of the requests, in [0, 1], are captured. ``since`` says from
    when on each version has had a role other than the candidate's (UTC). ``id`` differs from
    one desired state to the next, even with the same versions.
    """

    roles: Mapping[Role, VersionFolder] = field(default_factory=dict)
    canary_share: float = 0.0
    sampling_share: float = 1.0
    since: Mapping[str, datetime] = field(default_factory=dict)
    at: datetime = field(default_factory=utc_now)
    id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def without_candidate(self) -> "DesiredState":
        """The same versions in the same roles, but for the candidate, as a new desired state."""
        roles = dict(self.roles)
        roles.pop(Role.CANDIDATE, None)
        return replace(self, roles=roles, at=utc_now(), id=uuid4().hex)

    def with_candidate(self, candidate: VersionFolder) -> "DesiredState":
        """The same versions in the same roles, and `candidate` beside them."""
        state = self.without_candidate
        return replace(state, roles={**state.roles, Role.CANDIDATE: candidate})


def read_desired_state(home: Path) -> DesiredState | None:
    """The desired state of the server in `home`; None if there never was one.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    path = home / DESIRED_STATE_FILE
    try:
        return _state(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give its reader access to it."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; move it away and deploy a version anew.") from None


def write_desired_state(home: Path, state: DesiredState) -> None:
    """Make `state` what the server in `home` should serve; durable on return.

    A version that has a role already keeps the time since when it has one. Only one process at a
    time may write: whoever deploys holds the endpoint's lock.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """
    before = read_desired_state(home)
    known = {} if before is None else before.since
    since = {
        files.version: known.get(files.version, state.at)
        for role, files in state.roles.items()
        if role is not Role.CANDIDATE
    }
    path = home / DESIRED_STATE_FILE
    try:
        with replacing(path) as temporary:
            document = json.dumps(_document(replace(state, since=since)))
            temporary.write_text(document, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); free some space, or mend "
            "its permissions."
        ) from None


def _document(state: DesiredState) -> dict[str, Any]:
    return {
        "id": state.id,
        "at": state.at.isoformat(),
        "roles": {
            role.value: {"version": files.version, "folder": str(files.folder.absolute())}
            for role, files in state.roles.items()
        },
        "canary_share": state.canary_share,
        "sampling_share": state.sampling_share,
        "since": {version: since.isoformat() for version, since in state.since.items()},
    }


def _state(document: dict[str, Any]) -> DesiredState:
    return DesiredState(
        roles={
            Role(role): VersionFolder(str(entry["version"]), Path(entry["folder"]))
            for role, entry in document["roles"].items()
        },
        canary_share=float(document["canary_share"]),
        sampling_share=float(document["sampling_share"]),
        since={
            version: datetime.fromisoformat(since) for version, since in document["since"].items()
        },
        at=datetime.fromisoformat(document["at"]),
        id=str(document["id"]),
    )
