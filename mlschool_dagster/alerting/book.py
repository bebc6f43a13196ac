"""The book of troubles and of what is still to be told, in the history database.

What observations change and what is to be told of them are one transaction, so that a crash neither
loses a notice nor repeats one. A notice waits for each channel by itself, and is struck out once
that channel has taken it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    RowMapping,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
)

from mlschool_dagster.alerting.alert import Kind, Notice, Observation
from mlschool_dagster.alerting.troubles import Trouble, judge, reminder
from mlschool_dagster.database import Database

KEPT = timedelta(days=30)
"""How long a trouble is remembered after it was told last, if it has ended."""
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
"""Between two attempts at a channel; each pause is twice the one before."""

_TABLES = MetaData()

# Instants are seconds since 1970.
_TROUBLES = Table(
    "alert_troubles",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("order", Double, nullable=False),
    Column("is_open", Boolean, nullable=False),
    Column("since", Double, nullable=False),
    Column("told", Double, nullable=False),
    Column("reminders", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("severe", Boolean, nullable=False),
    Column("link", Text, nullable=False),
    Column("window", Text, nullable=False),
)
_WAITING = Table(
    "alert_notices",
    _TABLES,
    Column("id", Integer, primary_key=True),
    Column("channel", Text, nullable=False, index=True),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("severe", Boolean, nullable=False),
    Column("link", Text, nullable=False),
    Column("at", Double, nullable=False),
)
_AILING = Table(
    "alert_channels",
    _TABLES,
    Column("channel", Text, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("not_before", Double, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Ailing:
    """A channel that did not take what it was given: after how many attempts, and why."""

    channel: str
    attempts: int
    why: str
    not_before: datetime
    waiting: int


class Book:
    """The book in the database at `uri`, for the channels named `channels`.

    Raises:
        UserError: the database cannot be used.
    """

    def __init__(self, uri: str, channels: Sequence[str]) -> None:
        self._database = Database(uri, _TABLES)
        self._channels = channels

    def note(
        self, observations: Iterable[Observation], now: datetime, remind_every: timedelta
    ) -> list[Notice]:
        """Judge `observations` in their order and keep what is to be told; durable on return.

        Returns:
            What is to be told because of them, and the reminders that are due.
        """
        told: list[Notice] = []
        with self._database.transaction() as connection:
            for seen in observations:
                known = _trouble(connection, seen.key)
                found, notice = judge(known, seen, now)
                if found is not None and found != known:
                    _keep(connection, found)
                told.extend([notice] if notice else [])
            self._tell(connection, told)
            reminders = list(_reminders(connection, now, remind_every))
            self._tell(connection, reminders)
            ended_long_ago = _TROUBLES.c.told < (now - KEPT).timestamp()
            connection.execute(delete(_TROUBLES).where(~_TROUBLES.c.is_open, ended_long_ago))
        return told + reminders

    def open_troubles(self) -> list[Trouble]:
        """What is in trouble now, the oldest first."""
        with self._database.reading() as connection:
            return _open(connection)

    def waiting(self, channel: str, now: datetime, limit: int) -> dict[int, Notice]:
        """The oldest notices, at most `limit`, that `channel` is to be given now, by number."""
        with self._database.reading() as connection:
            pause = select(_AILING.c.not_before).where(_AILING.c.channel == channel)
            not_before = connection.execute(pause).scalar()
            if not_before is not None and now.timestamp() < not_before:
                return {}
            mine = select(_WAITING).where(_WAITING.c.channel == channel)
            rows = connection.execute(mine.order_by(_WAITING.c.id).limit(limit))
            return {row["id"]: _notice(row) for row in rows.mappings()}

    def taken(self, channel: str, numbers: Iterable[int]) -> None:
        """Strike out what `channel` has taken."""
        with self._database.transaction() as connection:
            connection.execute(delete(_WAITING).where(_WAITING.c.id.in_(list(numbers))))
            connection.execute(delete(_AILING).where(_AILING.c.channel == channel))

    def refused(
        self, channel: str, why: str, now: datetime, retry_after: timedelta | None = None
    ) -> None:
        """Leave `channel` alone for a while, longer each time: it did not take what it was given.

        `retry_after` is how long it asked for.
        """
        with self._database.transaction() as connection:
            mine = _AILING.c.channel == channel
            made = connection.execute(select(_AILING.c.attempts).where(mine)).scalar() or 0
            pause = min(FIRST_PAUSE * 2 ** min(made, 16), LONGEST_PAUSE)
            asked = min(retry_after or pause, LONGEST_PAUSE)
            connection.execute(delete(_AILING).where(mine))
            connection.execute(
                insert(_AILING).values(
                    channel=channel,
                    attempts=made + 1,
                    why=why,
                    not_before=(now + max(pause, asked)).timestamp(),
                )
            )

    def ailing(self) -> list[Ailing]:
        """The channels that did not take what they were given last."""
        count = func.count(_WAITING.c.id).label("waiting")
        query = (
            select(_AILING, count)
            .join(_WAITING, _WAITING.c.channel == _AILING.c.channel)
            .where(_AILING.c.channel.in_(self._channels))
            .group_by(*_AILING.c)
        )
        with self._database.reading() as connection:
            return [
                Ailing(**{**row, "not_before": _instant(row["not_before"])})
                for row in connection.execute(query).mappings()
            ]

    def close(self) -> None:
        """Let go of the connections."""
        self._database.close()

    def _tell(self, connection: Connection, notices: Sequence[Notice]) -> None:
        rows = [
            {**asdict(notice), "kind": notice.kind.value, "at": notice.at.timestamp()}
            for notice in notices
        ]
        for channel in self._channels if rows else ():
            connection.execute(insert(_WAITING), [{**row, "channel": channel} for row in rows])


def _trouble(connection: Connection, key: str) -> Trouble | None:
    found = connection.execute(select(_TROUBLES).where(_TROUBLES.c.key == key))
    row = found.mappings().one_or_none()
    return None if row is None else _known(row)


def _open(connection: Connection) -> list[Trouble]:
    still = (
        select(_TROUBLES).where(_TROUBLES.c.is_open).order_by(_TROUBLES.c.since, _TROUBLES.c.key)
    )
    return [_known(row) for row in connection.execute(still).mappings()]


def _keep(connection: Connection, trouble: Trouble) -> None:
    row = {
        **asdict(trouble),
        "since": trouble.since.timestamp(),
        "told": trouble.told.timestamp(),
    }
    connection.execute(delete(_TROUBLES).where(_TROUBLES.c.key == trouble.key))
    connection.execute(insert(_TROUBLES).values(row))


def _reminders(connection: Connection, now: datetime, every: timedelta) -> Iterator[Notice]:
    for trouble in _open(connection):
        due = reminder(trouble, now, every)
        if due is not None:
            reminded, notice = due
            _keep(connection, reminded)
            yield notice


def _known(row: RowMapping) -> Trouble:
    fields: dict[str, Any] = dict(row)
    return Trouble(
        **{**fields, "since": _instant(fields["since"]), "told": _instant(fields["told"])}
    )


def _notice(row: RowMapping) -> Notice:
    return Notice(
        key=row["key"],
        kind=Kind(row["kind"]),
        text=row["text"],
        severe=row["severe"],
        link=row["link"],
        at=_instant(row["at"]),
    )


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
