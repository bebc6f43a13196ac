"""Promotion ledger: every step of every rollout, in an append-only table of the history database.

Several daemons may append, or one daemon twice after a crash. So the ledger accepts only allowed
transitions, and applies optimistic concurrency control: a writer can name the last entry that it
has read, and is refused if another entry was appended since.
"""

import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    select,
)

from mlschool_dagster.database import Database
from mlschool_dagster.errors import UserError
from mlschool_dagster.promotion.rollout import Entry, Step, rollouts

_TABLES = MetaData()

PROMOTIONS = Table(
    "promotions",
    _TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rollout", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Column("at", String(32), nullable=False),
    Column("step", String(32), nullable=False),
    Column("version", String(64), nullable=False),
    Column("by", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", Text, nullable=False),
    UniqueConstraint("rollout", "position"),
)


class InvalidTransitionError(UserError):
    """A step that may not follow now, because another one was recorded first."""


class PromotionLedger:
    """The ledger in `database`; open one with `open_ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entry: Entry, after: int | None = None) -> None:
        """Append `entry` to its rollout; durable on return.

        Idempotent: the newest step of the rollout, from the same writer again, changes nothing.
        With `after`, the ledger must end with that entry number (0: it is empty).

        Raises:
            InvalidTransitionError: the transition is not allowed, another rollout is open, or the
                ledger has entries beyond `after`.
            UserError: the database cannot be used.
        """
        with self._database.transaction() as connection:
            known = _read(connection)
            own = [one for one in known if one.rollout == entry.rollout]
            if own and (own[-1].step, own[-1].by) == (entry.step, entry.by):
                return
            _expect_allowed(entry, known, after)
            connection.execute(
                insert(PROMOTIONS).values(
                    number=len(known) + 1,
                    rollout=entry.rollout,
                    position=len(own) + 1,
                    at=entry.at.isoformat(),
                    step=entry.step.value,
                    version=entry.version,
                    by=entry.by,
                    reason=entry.reason,
                    details=json.dumps(dict(entry.details)),
                )
            )

    def entries(self, rollout: str | None = None) -> list[Entry]:
        """Every entry, or those of one rollout, in order.

        Raises:
            UserError: the database cannot be used.
        """
        with self._database.reading() as connection:
            known = _read(connection)
        return [entry for entry in known if rollout in (None, entry.rollout)]

    def close(self) -> None:
        """Close the database connections."""
        self._database.close()


def open_ledger(uri: str) -> PromotionLedger:
    """The ledger at `uri`, ``sqlite:///path`` or ``postgresql://...``, created if need be.

    Raises:
        UserError: the database cannot be used.
    """
    return PromotionLedger(Database(uri, _TABLES))


def _read(connection: Connection) -> list[Entry]:
    rows = connection.execute(select(PROMOTIONS).order_by(PROMOTIONS.c.number)).mappings()
    return [
        Entry(
            rollout=row["rollout"],
            at=datetime.fromisoformat(row["at"]),
            step=Step(row["step"]),
            version=row["version"],
            by=row["by"],
            reason=row["reason"],
            details=json.loads(row["details"]),
            number=row["number"],
        )
        for row in rows
    ]


def _expect_allowed(entry: Entry, known: Sequence[Entry], after: int | None) -> None:
    if after is not None and len(known) != after:
        raise InvalidTransitionError(
            f"The step {entry.step.value!r} of rollout {entry.rollout} was decided on entry {after}"
            f" of the promotion ledger, which now has {len(known)} entries; decide again."
        )
    by_id = {rollout.id: rollout for rollout in rollouts(known)}
    own = by_id.get(entry.rollout)
    if own is not None:
        if entry.step not in own.allowed_steps():
            raise InvalidTransitionError(
                f"The step {entry.step.value!r} cannot follow {own.last.step.value!r} in rollout "
                f"{entry.rollout}; see the asset promotion_ledger."
            )
        return
    if entry.step is not Step.REQUESTED:
        raise InvalidTransitionError(
            f"The promotion ledger has no rollout {entry.rollout!r}; see the asset "
            "promotion_ledger for its rollouts."
        )
    for other in by_id.values():
        if other.is_open:
            raise InvalidTransitionError(
                f"Rollout {entry.rollout} cannot begin while rollout {other.id} is open; wait for "
                "its end."
            )
