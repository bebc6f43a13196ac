"""The book of troubles and of what is still to be told, in the history database.

What observations change and what is to be told of them are one transaction, so that a crash neither
loses a notice nor repeats one. A notice waits for each channel by itself, and is struck out once
that channel has taken it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
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

from mlschool_dagster.alerting.alert import Kind, Notice, Observation, one_line
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
_CAUSES = Table(
    "alert_causes",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("cause", Text, nullable=False, index=True),
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

        Troubles of one cause that begin within `remind_every` are told once, and so is their end,
        once the last of them has ended.

        Returns:
            What is to be told because of them, and the reminders that are due.
        """
        told: list[Notice] = []
        silent: Counter[str] = Counter()
        with self._database.transaction() as connection:
            for seen in observations:
                known = _trouble(connection, seen.key)
                found, notice = judge(known, seen, now)
                cause = seen.cause or _cause(connection, seen.key)
                alike = [one for one in _alike(connection, cause) if one.key != seen.key]
                if found is not None and found != known:
                    _keep(connection, found, cause)
                if notice is None:
                    continue
                begins = notice.kind is Kind.TROUBLE and not (known and known.is_open)
                if begins and any(now - one.told < remind_every for one in alike):
                    silent[cause] += 1
                elif notice.kind is not Kind.RECOVERY or not alike:
                    told.append(notice)
            told = [_with_others(connection, notice, silent) for notice in told]
            self._tell(connection, told)
            reminders = list(_reminders(connection, now, remind_every))
            self._tell(connection, reminders)
            ended_long_ago = _TROUBLES.c.told < (now - KEPT).timestamp()
            connection.execute(delete(_TROUBLES).where(~_TROUBLES.c.is_open, ended_long_ago))
            known_keys = select(_TROUBLES.c.key)
            connection.execute(delete(_CAUSES).where(_CAUSES.c.key.not_in(known_keys)))
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


def _open(connection: Connection, *which: ColumnElement[bool]) -> list[Trouble]:
    """The open troubles, of those `which` are meant, the oldest first."""
    still = (
        select(_TROUBLES)
        .where(_TROUBLES.c.is_open, *which)
        .order_by(_TROUBLES.c.since, _TROUBLES.c.key)
    )
    return [_known(row) for row in connection.execute(still).mappings()]


def _cause(connection: Connection, key: str) -> str:
    found = connection.execute(select(_CAUSES.c.cause).where(_CAUSES.c.key == key))
    return str(found.scalar() or "")


def _alike(connection: Connection, cause: str) -> list[Trouble]:
    """The open troubles of `cause`, the oldest first."""
    if not cause:
        return []
    same = select(_CAUSES.c.key).where(_CAUSES.c.cause == cause)
    return _open(connection, _TROUBLES.c.key.in_(same))


def _with_others(connection: Connection, notice: Notice, silent: Mapping[str, int]) -> Notice:
    """`notice` with how many others of its cause are not told beside it."""
    others = silent.get(_cause(connection, notice.key), 0)
    if notice.kind is not Kind.TROUBLE or not others:
        return notice
    return replace(notice, text=one_line(f"{notice.text.rstrip('.')} ({others} more alike)."))


def _keep(connection: Connection, trouble: Trouble, cause: str) -> None:
    row = {
        **asdict(trouble),
        "since": trouble.since.timestamp(),
        "told": trouble.told.timestamp(),
    }
    for table in (_TROUBLES, _CAUSES):
        connection.execute(delete(table).where(table.c.key == trouble.key))
    connection.execute(insert(_TROUBLES).values(row))
    if cause:
        connection.execute(insert(_CAUSES).values(key=trouble.key, cause=cause))


def _reminders(connection: Connection, now: datetime, every: timedelta) -> Iterator[Notice]:
    reminded_of: set[str] = set()
    for trouble in _open(connection):
        due = reminder(trouble, now, every)
        cause = _cause(connection, trouble.key)
        if due is None or cause in reminded_of:
            continue
        reminded, notice = due
        _keep(connection, reminded, cause)
        if cause:
            reminded_of.add(cause)
            for other in _alike(connection, cause):
                _keep(connection, replace(other, told=now, reminders=reminded.reminders), cause)
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
