"""The deployment ledger: what every endpoint was asked to serve and what it served, in one table.

The table is in the history database, so that sensors and runs on different machines read the same,
and is only ever appended to.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise, zip_longest
from typing import Any

from sqlalchemy import Column, Integer, MetaData, RowMapping, String, Table, Text, insert, select

from mlschool_dagster.capture.records import Role
from mlschool_dagster.clock import utc_now
from mlschool_dagster.database import Database
from mlschool_dagster.deployment.plan import Plan

_TABLES = MetaData()

DEPLOYMENTS = Table(
    "deployments",
    _TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", Text, nullable=False),
    Column("at", String(32), nullable=False),
    Column("event", String(16), nullable=False),
    # JSON, with sorted keys; NULL where nothing serves.
    Column("plan", Text),
    Column("by", String(256), nullable=False),
    Column("reason", Text, nullable=False),
)


class DeploymentEvent(StrEnum):
    """Kind of an entry of the ledger.

    Wanted: a deployment of the plan was requested. Serving: the endpoint serves that plan.
    Taken back: the deployment failed, and the plan before serves on. Failed: it failed, and nothing
    serves. Observed: the endpoint serves something that nobody deployed through the platform.
    Removed: the endpoint was torn down.
    """

    WANTED = "wanted"
    SERVING = "serving"
    TAKEN_BACK = "taken back"
    FAILED = "failed"
    OBSERVED = "observed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class DeploymentEntry:
    """One event at ``at`` (UTC), by whom (a run's id, or empty) and why.

    ``plan`` is the requested plan or, for all other events, the serving plan; None: nothing serves.
    ``number`` counts the ledger's entries from 1, and is given by the ledger.
    """

    event: DeploymentEvent
    plan: Plan | None
    by: str = ""
    reason: str = ""
    at: datetime = field(default_factory=utc_now)
    number: int = 0


class DeploymentLedger:
    """The entries about the endpoint `endpoint` in `database`; open one with `open_ledger`."""

    def __init__(self, database: Database, endpoint: str) -> None:
        self._database = database
        self._endpoint = endpoint

    def append(self, entry: DeploymentEntry) -> DeploymentEntry:
        """Keep `entry` as the newest and return it with its number; durable on return.

        Its time is moved up to that of the entry before it, if a clock went back.

        Raises:
            UserError: the database cannot be used.
        """
        newest = select(DEPLOYMENTS).order_by(DEPLOYMENTS.c.number.desc()).limit(1)
        with self._database.transaction() as connection:
            last = connection.execute(newest).mappings().first()
            at = entry.at if last is None else max(entry.at, datetime.fromisoformat(last["at"]))
            kept = replace(entry, at=at, number=1 if last is None else last["number"] + 1)
            connection.execute(insert(DEPLOYMENTS).values(_row(kept, self._endpoint)))
        return kept

    def entries(self) -> list[DeploymentEntry]:
        """Every entry about the endpoint, in order.

        Raises:
            UserError: the database cannot be used.
        """
        about = select(DEPLOYMENTS).where(DEPLOYMENTS.c.endpoint == self._endpoint)
        with self._database.reading() as connection:
            rows = connection.execute(about.order_by(DEPLOYMENTS.c.number)).mappings()
            return [_entry(row) for row in rows]

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def open_ledger(uri: str, endpoint: str) -> DeploymentLedger:
    """Open the ledger of `endpoint` in the database at `uri`, which is created if need be.

    Raises:
        UserError: the database cannot be used.
    """
    return DeploymentLedger(Database(uri, _TABLES), endpoint)


def _row(entry: DeploymentEntry, endpoint: str) -> dict[str, Any]:
    plan = entry.plan
    return {
        "number": entry.number,
        "endpoint": endpoint,
        "at": entry.at.isoformat(),
        "event": entry.event.value,
        "plan": None if plan is None else json.dumps(plan.to_dict(), sort_keys=True),
        "by": entry.by,
        "reason": entry.reason,
    }


def _entry(row: RowMapping) -> DeploymentEntry:
    return DeploymentEntry(
        event=DeploymentEvent(row["event"]),
        plan=None if row["plan"] is None else Plan.from_dict(json.loads(row["plan"])),
        by=row["by"],
        reason=row["reason"],
        at=datetime.fromisoformat(row["at"]),
        number=row["number"],
    )


def served_entries(entries: Sequence[DeploymentEntry]) -> list[DeploymentEntry]:
    """Those of `entries` that say what serves from then on."""
    return [entry for entry in entries if entry.event is not DeploymentEvent.WANTED]


def serving_plan(entries: Sequence[DeploymentEntry]) -> Plan | None:
    """The plan that serves according to the ledger; None if nothing does."""
    served = served_entries(entries)
    return served[-1].plan if served else None


def previous_primary(entries: Sequence[DeploymentEntry]) -> str | None:
    """The primary that served before the present one; None if there was no other."""
    primaries = [entry.plan.primary for entry in served_entries(entries) if entry.plan is not None]
    earlier = [version for version in primaries if version != primaries[-1]]
    return earlier[-1] if earlier else None


class Action(StrEnum):
    """Change of a version's role.

    A primary is rolled back to when it had served before the one that it replaces ever did.
    Withdrawn is what has a role no more; a canary or shadow that went on to another role is not.
    """

    DEPLOYED = "deployed"
    ROLLED_BACK = "rolled back"
    CANARY = "canary"
    SHADOW = "shadow"
    WITHDRAWN = "withdrawn"
    SAMPLING = "sampling"
    CONFIRMED = "confirmed"
    TAKEN_BACK = "taken back"
    FAILED = "failed"


_SERVED_ROLES = (Role.PRIMARY, Role.CANARY, Role.SHADOW)
_TAKEN_ON = {Role.CANARY: Action.CANARY, Role.SHADOW: Action.SHADOW}
_FAILURES = {DeploymentEvent.TAKEN_BACK: Action.TAKEN_BACK, DeploymentEvent.FAILED: Action.FAILED}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that changed at ``at`` (UTC).

    ``before`` and ``after`` are the versions in ``role``, None if there was none; ``share`` is the
    canary's or shadow's share of the requests, or that of the requests which are captured, where it
    changed.
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
    """The time in which ``version`` was the primary: [since, until), or since then if None."""

    version: str
    since: datetime
    until: datetime | None

    def length(self, now: datetime) -> timedelta:
        """How long the version has served at `now`."""
        return (self.until or now) - self.since


def changes(entries: Sequence[DeploymentEntry]) -> list[Change]:
    """Changes of each of the `served_entries`, in order; each yields at least one change."""
    primaries: list[str] = []
    made: list[Change] = []
    plan: Plan | None = None
    for entry in served_entries(entries):
        made.extend(_changes(plan, entry, primaries))
        plan = entry.plan
        if plan is not None and plan.primary not in primaries:
            primaries.append(plan.primary)
    return made


def terms(entries: Sequence[DeploymentEntry]) -> list[Term]:
    """Which version was the primary when, in order; times without one are left out.

    Entries in a row with the same primary are one term.
    """
    served = served_entries(entries)
    starts = [
        (_primary(after.plan), after.at)
        for before, after in pairwise([None, *served])
        if after is not None and (before is None or _primary(before.plan) != _primary(after.plan))
    ]
    ends: list[datetime | None] = [at for _, at in starts[1:]]
    return [
        Term(version, since, until)
        for (version, since), until in zip_longest(starts, ends)
        if version is not None
    ]


def _changes(
    before: Plan | None, entry: DeploymentEntry, primaries: Sequence[str]
) -> Iterator[Change]:
    made = [*_of_roles(before, entry, primaries), *_of_sampling(before, entry)]
    version = _primary(entry.plan)
    if entry.event in _FAILURES:
        made.append(_change(entry, _FAILURES[entry.event], Role.PRIMARY, version, version))
    elif not made:
        made = [_change(entry, Action.CONFIRMED, Role.PRIMARY, version, version)]
    yield from made


def _of_roles(
    before: Plan | None, entry: DeploymentEntry, primaries: Sequence[str]
) -> Iterator[Change]:
    had, has = _roles(before), _roles(entry.plan)
    for role in _SERVED_ROLES:
        (old, share_before), (new, share) = had[role], has[role]
        if (old, share_before) == (new, share):
            continue
        if new is None:
            if role is Role.PRIMARY or old not in [version for version, _ in has.values()]:
                yield _change(entry, Action.WITHDRAWN, role, old, None)
            continue
        action = _TAKEN_ON.get(role) or _as_primary(old, new, primaries)
        yield _change(entry, action, role, old, new, share)


def _as_primary(old: str | None, new: str, primaries: Sequence[str]) -> Action:
    if old is None or new not in primaries:
        return Action.DEPLOYED
    return Action.ROLLED_BACK if primaries.index(new) < primaries.index(old) else Action.DEPLOYED


def _of_sampling(before: Plan | None, entry: DeploymentEntry) -> Iterator[Change]:
    if entry.plan is None:
        return
    share = entry.plan.sampling_share
    if share != (before.sampling_share if before else 1.0):
        version = entry.plan.primary
        yield _change(entry, Action.SAMPLING, Role.PRIMARY, version, version, share)


def _roles(plan: Plan | None) -> dict[Role, tuple[str | None, float | None]]:
    """The version of each role and its share of the requests; the primary has the rest."""
    if plan is None:
        return dict.fromkeys(_SERVED_ROLES, (None, None))
    return {
        Role.PRIMARY: (plan.primary, None),
        Role.CANARY: (plan.canary, plan.canary_share if plan.canary else None),
        Role.SHADOW: (plan.shadow, plan.shadow_share if plan.shadow else None),
    }


def _change(
    entry: DeploymentEntry,
    action: Action,
    role: Role,
    before: str | None,
    after: str | None,
    share: float | None = None,
) -> Change:
    return Change(
        at=entry.at,
        action=action,
        role=role,
        before=before,
        after=after,
        share=share,
        by=entry.by,
        reason=entry.reason,
    )


def _primary(plan: Plan | None) -> str | None:
    return None if plan is None else plan.primary


def primary_at(entries: Sequence[DeploymentEntry], at: datetime) -> str | None:
    """The version that served as primary at a time, by the ledger; None if nothing did."""
    served = [entry for entry in served_entries(entries) if entry.at <= at]
    return served[-1].plan.primary if served and served[-1].plan else None
