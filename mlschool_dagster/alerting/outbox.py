"""Transactional outbox: incidents and undelivered notifications, in the history database.

An incident and the notifications that it causes change in one transaction, so that a crash neither
loses a notification nor enqueues it twice. Each channel has its own queue; a notification is
deleted from it once the channel has accepted it, and a channel that fails is retried with back-off.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

from mlschool_dagster.alerting.channels import Channel, DeliveryError
from mlschool_dagster.alerting.incidents import (
    Incident,
    Notification,
    NotificationKind,
    Signal,
    due_reminder,
    one_line,
    update_incident,
)
from mlschool_dagster.database import Database

KEPT = timedelta(days=30)
"""How long a resolved incident is kept after its last notification."""
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
"""Between two attempts at a channel; each pause is twice the one before."""
MESSAGE_NOTIFICATIONS = 20
"""Most notifications in one message."""
SENDING_SECONDS = 20.0
"""How long all channels together may take to deliver."""

_TABLES = MetaData()

# Instants are seconds since 1970.
_INCIDENTS = Table(
    "alert_incidents",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("order", Double, nullable=False),
    Column("is_open", Boolean, nullable=False),
    Column("since", Double, nullable=False),
    Column("notified_at", Double, nullable=False),
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
_OUTBOX = Table(
    "alert_outbox",
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
_FAILURES = Table(
    "alert_channel_failures",
    _TABLES,
    Column("channel", Text, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("not_before", Double, nullable=False),
)


@dataclass(frozen=True, slots=True)
class ChannelFailure:
    """A channel whose last delivery failed: failed attempts so far, the reason, what is queued."""

    channel: str
    attempts: int
    why: str
    not_before: datetime
    queued: int


class AlertOutbox:
    """The outbox in the database at `uri`, with one queue for each of `channels` (names).

    Raises:
        UserError: the database cannot be used.
    """

    def __init__(self, uri: str, channels: Sequence[str]) -> None:
        self._database = Database(uri, _TABLES)
        self._channels = channels

    def record(
        self, signals: Iterable[Signal], now: datetime, remind_every: timedelta
    ) -> list[Notification]:
        """Apply `signals` in their order and enqueue what they cause; durable on return.

        Incidents of one cause that start within `remind_every` of each other are notified once, and
        resolved once: when the last of them resolves. Either notification counts the others.

        Returns:
            The notifications that they cause, and the reminders that are due.
        """
        caused: list[Notification] = []
        grouped: Counter[str] = Counter()
        with self._database.transaction() as connection:
            for signal in signals:
                known = _find_incident(connection, signal.key)
                incident, notification = update_incident(known, signal, now)
                cause = signal.cause or _cause(connection, signal.key)
                group = [one for one in _open_of_cause(connection, cause) if one.key != signal.key]
                if incident is not None and incident != known:
                    _keep(connection, incident, cause)
                if notification is None:
                    continue
                starts = notification.kind is NotificationKind.FIRING
                starts = starts and not (known and known.is_open)
                if starts and any(now - one.notified_at < remind_every for one in group):
                    grouped[cause] += 1
                elif notification.kind is not NotificationKind.RESOLVED:
                    caused.append(notification)
                elif not group:
                    caused.append(_of_group(connection, notification, cause))
            caused = [_with_group(connection, notification, grouped) for notification in caused]
            self._enqueue(connection, caused)
            reminders = list(_reminders(connection, now, remind_every))
            self._enqueue(connection, reminders)
            expired = _INCIDENTS.c.notified_at < (now - KEPT).timestamp()
            connection.execute(delete(_INCIDENTS).where(~_INCIDENTS.c.is_open, expired))
            kept = select(_INCIDENTS.c.key)
            connection.execute(delete(_CAUSES).where(_CAUSES.c.key.not_in(kept)))
        return caused + reminders

    def open_incidents(self) -> list[Incident]:
        """The incidents that are firing now, the oldest first."""
        with self._database.reading() as connection:
            return _open(connection)

    def pending(self, channel: str, now: datetime, limit: int) -> dict[int, Notification]:
        """The oldest notifications, at most `limit`, to deliver to `channel` now, by number."""
        with self._database.reading() as connection:
            pause = select(_FAILURES.c.not_before).where(_FAILURES.c.channel == channel)
            not_before = connection.execute(pause).scalar()
            if not_before is not None and now.timestamp() < not_before:
                return {}
            queue = select(_OUTBOX).where(_OUTBOX.c.channel == channel)
            rows = connection.execute(queue.order_by(_OUTBOX.c.id).limit(limit))
            return {row["id"]: _notification(row) for row in rows.mappings()}

    def mark_delivered(self, channel: str, numbers: Iterable[int]) -> None:
        """Delete from the queue what `channel` has accepted."""
        with self._database.transaction() as connection:
            connection.execute(delete(_OUTBOX).where(_OUTBOX.c.id.in_(list(numbers))))
            connection.execute(delete(_FAILURES).where(_FAILURES.c.channel == channel))

    def mark_failed(self, channel: str, why: str, now: datetime) -> None:
        """Pause `channel` after a failed delivery, each time twice as long as before."""
        with self._database.transaction() as connection:
            own = _FAILURES.c.channel == channel
            made = connection.execute(select(_FAILURES.c.attempts).where(own)).scalar() or 0
            pause = min(FIRST_PAUSE * 2 ** min(made, 16), LONGEST_PAUSE)
            connection.execute(delete(_FAILURES).where(own))
            connection.execute(
                insert(_FAILURES).values(
                    channel=channel,
                    attempts=made + 1,
                    why=why,
                    not_before=(now + pause).timestamp(),
                )
            )

    def failures(self) -> list[ChannelFailure]:
        """The channels whose last delivery failed."""
        count = func.count(_OUTBOX.c.id).label("queued")
        query = (
            select(_FAILURES, count)
            .join(_OUTBOX, _OUTBOX.c.channel == _FAILURES.c.channel)
            .where(_FAILURES.c.channel.in_(self._channels))
            .group_by(*_FAILURES.c)
        )
        with self._database.reading() as connection:
            return [
                ChannelFailure(**{**row, "not_before": _instant(row["not_before"])})
                for row in connection.execute(query).mappings()
            ]

    def close(self) -> None:
        """Close the database connections."""
        self._database.close()

    def _enqueue(self, connection: Connection, notifications: Sequence[Notification]) -> None:
        rows = [
            {**asdict(one), "kind": one.kind.value, "at": one.at.timestamp()}
            for one in notifications
        ]
        for channel in self._channels if rows else ():
            connection.execute(insert(_OUTBOX), [{**row, "channel": channel} for row in rows])


def deliver(outbox: AlertOutbox, channels: Sequence[Channel], now: datetime) -> None:
    """Send each channel one message of its pending notifications, all channels in parallel.

    What a channel does not accept stays queued, and delays no other channel. Delivery is at least
    once: a channel that takes longer than `SENDING_SECONDS` counts as failed and may get the same
    message again, as may one that had accepted it when the process died.
    """
    pending = {
        channel: notifications
        for channel in channels
        if (notifications := outbox.pending(channel.name, now, MESSAGE_NOTIFICATIONS))
    }
    if not pending:
        return
    threads = ThreadPoolExecutor(len(pending))
    sent = {
        channel: threads.submit(channel.send, list(notifications.values()))
        for channel, notifications in pending.items()
    }
    wait(sent.values(), SENDING_SECONDS)
    threads.shutdown(wait=False)
    for channel, outcome in sent.items():
        error = _error(outcome)
        if error is None:
            outbox.mark_delivered(channel.name, pending[channel])
        else:
            outbox.mark_failed(channel.name, str(error), now)


def _error(outcome: "Future[None]") -> DeliveryError | None:
    if not outcome.done():
        return DeliveryError(f"it was not done within {SENDING_SECONDS:.0f} s")
    error = outcome.exception()
    if error is None or isinstance(error, DeliveryError):
        return error
    # The exception's own message may hold a secret.
    return DeliveryError(f"it failed with {type(error).__name__}")


def _find_incident(connection: Connection, key: str) -> Incident | None:
    rows = connection.execute(select(_INCIDENTS).where(_INCIDENTS.c.key == key))
    row = rows.mappings().one_or_none()
    return None if row is None else _incident(row)


def _open(connection: Connection, *filters: ColumnElement[bool]) -> list[Incident]:
    """The open incidents that match `filters`, the oldest first."""
    query = (
        select(_INCIDENTS)
        .where(_INCIDENTS.c.is_open, *filters)
        .order_by(_INCIDENTS.c.since, _INCIDENTS.c.key)
    )
    return [_incident(row) for row in connection.execute(query).mappings()]


def _cause(connection: Connection, key: str) -> str:
    rows = connection.execute(select(_CAUSES.c.cause).where(_CAUSES.c.key == key))
    return str(rows.scalar() or "")


def _open_of_cause(connection: Connection, cause: str) -> list[Incident]:
    """The open incidents of `cause`, the oldest first."""
    if not cause:
        return []
    group = select(_CAUSES.c.key).where(_CAUSES.c.cause == cause)
    return _open(connection, _INCIDENTS.c.key.in_(group))


def _with_group(
    connection: Connection, notification: Notification, grouped: Mapping[str, int]
) -> Notification:
    """`notification` with the number of incidents of its cause that are not notified themselves."""
    if notification.kind is not NotificationKind.FIRING:
        return notification
    return _counting(notification, grouped.get(_cause(connection, notification.key), 0))


def _of_group(connection: Connection, resolved: Notification, cause: str) -> Notification:
    """`resolved`, the last of its cause, with the number of those that resolved before."""
    if not cause:
        return resolved
    # The group ends with it: whatever fails alike later begins another one.
    members = connection.execute(delete(_CAUSES).where(_CAUSES.c.cause == cause)).rowcount
    return _counting(resolved, members - 1)


def _counting(notification: Notification, others: int) -> Notification:
    """`notification` with the number of `others` of its cause, if there are any."""
    if others < 1:
        return notification
    text = f"{notification.text.rstrip('.')} ({others} more alike)."
    return replace(notification, text=one_line(text))


def _keep(connection: Connection, incident: Incident, cause: str) -> None:
    row = {
        **asdict(incident),
        "since": incident.since.timestamp(),
        "notified_at": incident.notified_at.timestamp(),
    }
    for table in (_INCIDENTS, _CAUSES):
        connection.execute(delete(table).where(table.c.key == incident.key))
    connection.execute(insert(_INCIDENTS).values(row))
    if cause:
        connection.execute(insert(_CAUSES).values(key=incident.key, cause=cause))


def _reminders(connection: Connection, now: datetime, every: timedelta) -> Iterator[Notification]:
    reminded_causes: set[str] = set()
    for incident in _open(connection):
        due = due_reminder(incident, now, every)
        cause = _cause(connection, incident.key)
        if due is None or cause in reminded_causes:
            continue
        reminded, notification = due
        _keep(connection, reminded, cause)
        if cause:
            reminded_causes.add(cause)
            for other in _open_of_cause(connection, cause):
                same = replace(other, notified_at=now, reminders=reminded.reminders)
                _keep(connection, same, cause)
        yield notification


def _incident(row: RowMapping) -> Incident:
    fields: dict[str, Any] = dict(row)
    instants = {name: _instant(fields[name]) for name in ("since", "notified_at")}
    return Incident(**{**fields, **instants})


def _notification(row: RowMapping) -> Notification:
    return Notification(
        key=row["key"],
        kind=NotificationKind(row["kind"]),
        text=row["text"],
        severe=row["severe"],
        link=row["link"],
        at=_instant(row["at"]),
    )


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
