"""The sensor that turns signals into incidents and delivers their notifications.

A failed asset check does not fail its run, so a run-failure sensor alone would never see it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.alerting.incidents import Signal
    from mlschool_dagster.alerting.outbox import ChannelFailure
    from mlschool_dagster.promotion.rollout import Entry

INTERVAL_SECONDS = 15
RUNS_PER_TICK = 50


@dataclass(frozen=True, slots=True)
class Position:
    """Cursor of the sensor: the last run-ending event read, and how many promotion entries."""

    ending: int
    promotion: int


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notifies people when an asset check, run, sensor, schedule or promotion goes "
    "wrong, once, and when it is well again: in the log, and by the services of "
    "MLSCHOOL_ALERTS. Its own failures can be reported only once it works again.",
)
def failure_sensor(
    context: dg.SensorEvaluationContext, alerts: Alerts, history: History
) -> dg.SensorResult:
    """Read new signals, record incidents, and deliver what is due."""
    from mlschool_dagster.alerting.outbox import deliver

    channels = alerts.channels(context.log)
    signals, position = _read_signals(context, alerts, history)
    now = utc_now()
    with alerts.outbox(channels) as outbox:
        caused = outbox.record(signals, now, timedelta(hours=alerts.reminder_hours))
        deliver(outbox, channels, now)
        undelivered = [_sentence(failure) for failure in outbox.failures()]
    for sentence in undelivered:
        context.log.warning(sentence)
    texts = [notification.text for notification in caused] or ["Nothing went wrong."]
    return dg.SensorResult(
        skip_reason=dg.SkipReason(" ".join([*texts, *undelivered])),
        cursor=json.dumps(asdict(position)),
    )


def _read_signals(
    context: dg.SensorEvaluationContext, alerts: Alerts, history: History
) -> "tuple[list[Signal], Position]":
    """The signals since the cursor, and the next cursor."""
    from mlschool_dagster.defs.alerting import alert_sources

    with history.promotions() as ledger:
        entries = ledger.entries()
    since = _position(context, entries)
    endings = alert_sources.endings_after(context.instance, since.ending, RUNS_PER_TICK)
    signals = [
        signal
        for ending in endings
        for signal in alert_sources.of_run(context.instance, ending, alerts.run_link)
    ]
    signals += alert_sources.of_instigators(
        context.instance, _instigators(context), alerts.dagster_url
    )
    signals += map(alert_sources.of_promotion, entries[since.promotion :])
    return signals, Position(endings[-1].storage_id if endings else since.ending, len(entries))


def _position(context: dg.SensorEvaluationContext, entries: "Sequence[Entry]") -> Position:
    from mlschool_dagster.defs.alerting import alert_sources

    stored = json.loads(context.cursor or "{}")
    if stored.keys() != {field.name for field in fields(Position)}:
        # What ended before the sensor's first evaluation, in this release, is not reported.
        return Position(alert_sources.newest_ending(context.instance), len(entries))
    position = Position(**stored)
    # A ledger that has become shorter is another one.
    return position if position.promotion <= len(entries) else replace(position, promotion=0)


def _instigators(context: dg.SensorEvaluationContext) -> Iterator[str]:
    repository = context.repository_def
    if repository is not None:
        yield from (sensor.name for sensor in repository.sensor_defs)
        yield from (schedule.name for schedule in repository.schedule_defs)


def _sentence(failure: "ChannelFailure") -> str:
    return (
        f"Not yet delivered to {failure.channel}: {failure.queued} ({failure.why}, attempt "
        f"{failure.attempts}); next attempt after {failure.not_before:%Y-%m-%d %H:%M:%S} UTC."
    )
