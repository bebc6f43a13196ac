"""The sensor that tells people what is wrong, once, and that it is well again.

A failed asset check does not fail its run, so a run-failure sensor alone would never see it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.alerting.delivery import deliver
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.alerting import alert_sources as sources
from mlschool_dagster.resources.alerts import Alerts
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.alerting.alert import Observation
    from mlschool_dagster.alerting.book import Ailing
    from mlschool_dagster.promotion.episode import Entry

INTERVAL_SECONDS = 15
RUNS_PER_TICK = 50


@dataclass(frozen=True, slots=True)
class Position:
    """How far the sensor has read: the number of the last event, and how many promotion steps."""

    ending: int
    promotion: int


def alert_sensor() -> dg.SensorDefinition:
    """The sensor ``failure_sensor``."""

    @dg.sensor(
        name="failure_sensor",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells what goes wrong, once, and when it is well again: asset checks, runs, "
        "sensors, schedules and promotions; in the log, and by webhook and e-mail if they are "
        "configured. Only its own failure it can tell no sooner than it works again.",
    )
    def failures(
        context: dg.SensorEvaluationContext, alerts: Alerts, history: History
    ) -> dg.SensorResult:
        channels = alerts.channels(context.log)
        seen, position = _look(context, alerts, history)
        now = utc_now()
        with alerts.book(channels) as book:
            news = book.note(seen, now, timedelta(hours=alerts.reminder_hours))
            deliver(book, channels, now)
            ailing = book.ailing()
        untold = [_untold(channel) for channel in ailing]
        for sentence in untold:
            context.log.warning(sentence)
        told = [notice.text for notice in news] or ["Nothing went wrong."]
        return dg.SensorResult(
            skip_reason=dg.SkipReason(" ".join([*told, *untold])),
            cursor=json.dumps(asdict(position)),
        )

    return failures


def _look(
    context: dg.SensorEvaluationContext, alerts: Alerts, history: History
) -> "tuple[list[Observation], Position]":
    """What has happened since the last look, and how things are now."""
    with history.promotions() as ledger:
        steps = ledger.entries()
    since = _position(context, steps)
    endings = sources.endings_after(context.instance, since.ending, RUNS_PER_TICK)
    seen = [
        observation
        for ending in endings
        for observation in sources.of_run(context.instance, ending, alerts.run_link)
    ]
    seen += sources.of_instigators(context.instance, _instigators(context), alerts.dagster_url)
    seen += map(sources.of_promotion, steps[since.promotion :])
    return seen, Position(endings[-1].storage_id if endings else since.ending, len(steps))


def _position(context: dg.SensorEvaluationContext, steps: "Sequence[Entry]") -> Position:
    known = json.loads(context.cursor or "{}")
    if known.keys() != {field.name for field in fields(Position)}:
        # What ended before this sensor first ran, in this release, is history, not news.
        return Position(sources.newest_ending(context.instance), len(steps))
    position = Position(**known)
    # A ledger that has become shorter is another one.
    return position if position.promotion <= len(steps) else replace(position, promotion=0)


def _instigators(context: dg.SensorEvaluationContext) -> Iterator[str]:
    repository = context.repository_def
    if repository is not None:
        yield from (sensor.name for sensor in repository.sensor_defs)
        yield from (schedule.name for schedule in repository.schedule_defs)


def _untold(ailing: "Ailing") -> str:
    return (
        f"Not yet told by {ailing.channel}: {ailing.waiting} ({ailing.why}, attempt "
        f"{ailing.attempts}); it is tried again after {ailing.not_before:%Y-%m-%d %H:%M:%S} UTC."
    )
