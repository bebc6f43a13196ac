"""What went wrong, told once: failed runs and failed asset checks.

A failed asset check does not fail its run, so a run-failure sensor alone would never see it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

INTERVAL_SECONDS = 15
RUNS_PER_TICK = 50

_ENDINGS = (dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE)


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that went wrong, in a sentence; a warning unless ``severe``."""

    text: str
    severe: bool


def alert_sensor() -> dg.SensorDefinition:
    """The sensor ``failure_sensor``."""

    @dg.sensor(
        name="failure_sensor",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Logs every run that failed and every asset check that did not pass, once.",
    )
    def failures(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursors: dict[str, str] = json.loads(context.cursor or "{}")
        alerts: list[Alert] = []
        for ending in _ENDINGS:
            seen = cursors.get(ending.value)
            if seen is None:
                # What ended before this sensor first ran is history, not news.
                cursors[ending.value] = context.instance.fetch_run_status_changes(ending, 1).cursor
                continue
            result = context.instance.fetch_run_status_changes(
                ending, RUNS_PER_TICK, cursor=seen, ascending=True
            )
            cursors[ending.value] = result.cursor
            for record in result.records:
                alerts.extend(alerts_of_run(context.instance, record.run_id))
        for alert in alerts:
            (context.log.error if alert.severe else context.log.warning)(alert.text)
        news = " ".join(alert.text for alert in alerts) or "Nothing went wrong."
        return dg.SensorResult(skip_reason=dg.SkipReason(news), cursor=json.dumps(cursors))

    return failures


def alerts_of_run(instance: dg.DagsterInstance, run_id: str) -> Iterator[Alert]:
    """What went wrong in a run that has ended: checks that did not pass, and its failure."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        check = entry.get_dagster_event().asset_check_evaluation_data
        if not check.passed:
            place = f"{check.asset_key.to_user_string()}"
            window = f" of {check.partition}" if check.partition else ""
            yield Alert(
                f"Check {check.check_name} on {place}{window} did not pass in run {run_id}: "
                f"{check.description or 'see its metadata'}",
                severe=check.severity == dg.AssetCheckSeverity.ERROR,
            )
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
        error = entry.get_dagster_event().job_failure_data.error
        told = (error.message.strip() if error else "") or entry.user_message
        yield Alert(f"Run {run_id} of {entry.job_name} failed: {told}", severe=True)
