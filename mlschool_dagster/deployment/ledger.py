"""An endpoint's history in words: what changed, when, who wanted it and why, and who served when.

All of it is derived from the deployments that a target keeps, so that it cannot disagree with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import zip_longest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.serving.desired_state import Deployment, Release


class Action(StrEnum):
    """What happened to a version.

    A primary is rolled back to when it had served before the one that it replaces ever did.
    Withdrawn is what has a role no more; a canary, shadow or candidate that went on to another role
    is not.
    """

    DEPLOYED = "deployed"
    ROLLED_BACK = "rolled back"
    CANARY = "canary"
    SHADOW = "shadow"
    STAGED = "staged"
    WITHDRAWN = "withdrawn"
    SAMPLING = "sampling"
    CONFIRMED = "confirmed"


_TAKEN_ON = {Role.CANARY: Action.CANARY, Role.SHADOW: Action.SHADOW, Role.CANDIDATE: Action.STAGED}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a deployment changed at ``at`` (UTC).

    ``before`` and ``after`` are the versions in ``role``, None if there was none; ``share`` is the
    canary's share of the requests, or that of the requests which are captured, where it changed.
    """

    at: datetime
    action: Action
    role: Role
    before: str | None
    after: str | None
    share: float | None
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Term:
    """The time in which ``version`` was the primary: [since, until), still on if ``until`` is None.

    It begins when the version was wanted; workers follow within a second or two.
    """

    version: str
    since: datetime
    until: datetime | None

    def length(self, now: datetime) -> timedelta:
        """How long the version has served, seen from `now`."""
        return (self.until or now) - self.since


def changes(history: Sequence[Deployment]) -> list[Change]:
    """What each deployment of `history` changed, in its order; each one at least confirms."""
    served: list[Release] = []
    found: list[Change] = []
    before: Deployment | None = None
    for after in history:
        found.extend(_changes(before, after, served))
        if after.plan.primary is not None and after.plan.primary not in served:
            served.append(after.plan.primary)
        before = after
    return found


def terms(history: Sequence[Deployment]) -> list[Term]:
    """Which version was the primary when, in order; times without one are left out.

    Deployments in a row with the same primary are one term.
    """
    starts = [
        (_version(after.plan.primary), after.at)
        for before, after in zip([None, *history], history, strict=False)
        if before is None or _version(before.plan.primary) != _version(after.plan.primary)
    ]
    ends: list[datetime | None] = [at for _, at in starts[1:]]
    return [
        Term(version, since, until)
        for (version, since), until in zip_longest(starts, ends)
        if version is not None
    ]


def served_at(history: Sequence[Deployment], instant: datetime) -> str | None:
    """The version that was the primary at `instant` (timezone-aware); None if none was."""
    wanted = [deployment for deployment in history if deployment.at <= instant]
    return _version(wanted[-1].plan.primary) if wanted else None


def _changes(
    before: Deployment | None, after: Deployment, served: Sequence[Release]
) -> Iterator[Change]:
    found = [*_of_roles(before, after, served), *_of_sampling(before, after)]
    if not found:
        version = _version(after.plan.primary)
        found = [_change(after, Action.CONFIRMED, Role.PRIMARY, version, version)]
    yield from found


def _of_roles(
    before: Deployment | None, after: Deployment, served: Sequence[Release]
) -> Iterator[Change]:
    had, has = _roles(before), _roles(after)
    for role in Role:
        old, new = had[role], has[role]
        share = after.plan.canary_share if role is Role.CANARY and new else None
        reweighted = before is not None and share not in (None, before.plan.canary_share)
        if old == new and not reweighted:
            continue
        if new is None:
            if role is Role.PRIMARY or old not in has.values():
                yield _change(after, Action.WITHDRAWN, role, _version(old), None)
            continue
        action = _TAKEN_ON.get(role) or _as_primary(old, new, served)
        yield _change(after, action, role, _version(old), new.version, share)


def _as_primary(old: Release | None, new: Release, served: Sequence[Release]) -> Action:
    if old is None or new not in served:
        return Action.DEPLOYED
    return Action.ROLLED_BACK if served.index(new) < served.index(old) else Action.DEPLOYED


def _of_sampling(before: Deployment | None, after: Deployment) -> Iterator[Change]:
    share = after.plan.sampling_share
    if share != (before.plan.sampling_share if before else 1.0):
        version = _version(after.plan.primary)
        yield _change(after, Action.SAMPLING, Role.PRIMARY, version, version, share)


def _roles(deployment: Deployment | None) -> dict[Role, Release | None]:
    if deployment is None:
        return dict.fromkeys(Role)
    plan = deployment.plan
    return {
        Role.PRIMARY: plan.primary,
        Role.CANARY: plan.canary,
        Role.SHADOW: plan.shadow,
        Role.CANDIDATE: deployment.candidate,
    }


def _change(
    deployment: Deployment,
    action: Action,
    role: Role,
    before: str | None,
    after: str | None,
    share: float | None = None,
) -> Change:
    return Change(
        at=deployment.at,
        action=action,
        role=role,
        before=before,
        after=after,
        share=share,
        by=deployment.by,
        reason=deployment.reason,
    )


def _version(release: Release | None) -> str | None:
    return None if release is None else release.version
