"""The promotion ledger: every step of every episode, in a table that is only ever appended to.

Who appends may be one of several daemons, or the same one a second time. So the ledger accepts a
step only where it may follow, and, from a writer who says how much of the ledger it had seen, only
if nothing has been added since.
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
from mlschool_dagster.promotion.episode import Entry, Step, episodes

_TABLES = MetaData()

PROMOTIONS = Table(
    "promotions",
    _TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("episode", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Column("at", String(32), nullable=False),
    Column("step", String(32), nullable=False),
    Column("version", String(64), nullable=False),
    Column("by", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", Text, nullable=False),
    UniqueConstraint("episode", "position"),
)


class OutOfOrderError(UserError):
    """A step that may not come now: another one came first."""


class PromotionLedger:
    """The entries kept in `database`; open one with `open_ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entry: Entry, after: int | None = None) -> None:
        """Keep `entry` as the newest of its episode; durable on return.

        The very step that came last, by the same writer, is a repetition and changes nothing. With
        `after`, the ledger must end with that entry number (0: it is empty).

        Raises:
            OutOfOrderError: the step may not follow now: by the order of steps, because another
                episode is open, or because the ledger goes on after `after`.
            UserError: the database cannot be used.
        """
        with self._database.transaction() as connection:
            known = _read(connection)
            own = [found for found in known if found.episode == entry.episode]
            if own and (own[-1].step, own[-1].by) == (entry.step, entry.by):
                return
            _expect_in_order(entry, known, after)
            connection.execute(
                insert(PROMOTIONS).values(
                    number=len(known) + 1,
                    episode=entry.episode,
                    position=len(own) + 1,
                    at=entry.at.isoformat(),
                    step=entry.step.value,
                    version=entry.version,
                    by=entry.by,
                    reason=entry.reason,
                    details=json.dumps(dict(entry.details)),
                )
            )

    def entries(self, episode: str | None = None) -> list[Entry]:
        """Every entry, or those of one episode, in order.

        Raises:
            UserError: the database cannot be used.
        """
        with self._database.reading() as connection:
            known = _read(connection)
        return [entry for entry in known if episode in (None, entry.episode)]

    def close(self) -> None:
        """Let go of the connections."""
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
            episode=row["episode"],
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


def _expect_in_order(entry: Entry, known: Sequence[Entry], after: int | None) -> None:
    if after is not None and len(known) != after:
        raise OutOfOrderError(
            f"The step {entry.step.value!r} of episode {entry.episode} was decided on entry {after}"
            f" of the promotion ledger, which has gone on to {len(known)}; decide again."
        )
    told = {episode.id: episode for episode in episodes(known)}
    own = told.get(entry.episode)
    if own is not None:
        if entry.step not in own.following():
            raise OutOfOrderError(
                f"The step {entry.step.value!r} cannot follow {own.last.step.value!r} in episode "
                f"{entry.episode}; see the asset promotion_ledger."
            )
        return
    if entry.step is not Step.REQUESTED:
        raise OutOfOrderError(
            f"The promotion ledger knows no episode {entry.episode!r}; see the asset "
            "promotion_ledger for those that it knows."
        )
    for other in told.values():
        if other.is_open:
            raise OutOfOrderError(
                f"Episode {entry.episode} cannot begin while episode {other.id} is open; wait for "
                "its end."
            )
