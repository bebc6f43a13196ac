"""Sources of alerts: what Dagster and the promotion ledger know, as signals.

Each subject of an incident has a name of its own: an asset check, the work of a job (one per window
where the job has windows), a sensor or schedule, a rollout.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

import dagster as dg

from mlschool_dagster.alerting.incidents import Condition, Signal
from mlschool_dagster.dagster_internals import (
    EngineEventData,
    EventLogCursor,
    InstigatorState,
    InstigatorTick,
    JobFailureData,
    SerializableErrorInfo,
    TickStatus,
)
from mlschool_dagster.defs.common import UNDECIDED
from mlschool_dagster.defs.monitoring.arrival_sensors import MAXIMUM_RUNS
from mlschool_dagster.defs.monitoring.windows import PARTITION_TAG
from mlschool_dagster.promotion.rollout import Entry, Step

RunLink = Callable[[str], str]
"""The address of a run by its id, empty if it is not known."""

ENDINGS = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)
_FINISHED_TICKS = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
_DECLARED = "This run has been marked as failed from outside"
"""Message of a run that Dagster itself declared failed."""
_AD_HOC = "__ASSET_JOB"
"""Dagster's name for the job of assets that somebody selects by hand."""

_PARTICULAR = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+")
"""Parts of a message that differ between failures of one cause: runs, windows, numbers."""

_FAILURES = {
    Step.REJECTED: False,
    Step.CANARY_FAILED: True,
    Step.SOAK_FAILED: True,
    Step.ROLLED_BACK: True,
    Step.FAILED: True,
}
"""The steps that end or turn back a promotion, and whether they are severe."""


def newest_ending(instance: dg.DagsterInstance) -> int:
    """The number of the newest event that ended a run, 0 if there is none."""
    newest = [instance.fetch_run_status_changes(ending, 1).records for ending in ENDINGS]
    return max((record.storage_id for records in newest for record in records), default=0)


def endings_after(instance: dg.DagsterInstance, number: int, limit: int) -> list[dg.EventLogRecord]:
    """The events that ended a run, after event `number`: the oldest `limit` of them, in order."""
    cursor = EventLogCursor.from_storage_id(number).to_string()
    records = [
        record
        for ending in ENDINGS
        for record in instance.fetch_run_status_changes(
            ending, limit, cursor=cursor, ascending=True
        ).records
    ]
    return sorted(records, key=attrgetter("storage_id"))[:limit]


def of_run(
    instance: dg.DagsterInstance, ending: dg.EventLogRecord, link: RunLink
) -> Iterator[Signal]:
    """The signals of a run that has ended: of its asset checks, and of its own outcome."""
    run = instance.get_run_by_id(ending.run_id)
    if run is None:
        # It was deleted since.
        return
    evaluated = instance.all_logs(ending.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    for position, entry in enumerate(evaluated):
        # Runs overlap and are read as they end: so it is their ends that put checks in order.
        yield _of_check(run, entry, ending.timestamp + position * 1e-6, link)
    yield from _of_work(instance, run, ending.event_log_entry, link)


def of_instigators(
    instance: dg.DagsterInstance, names: Iterable[str], dagster_url: str
) -> Iterable[Signal]:
    """The signals of the newest ticks of the sensors and schedules `names`.

    The others that Dagster remembers are of another place, or are no more.
    """
    known = set(names)
    seen = [
        _of_tick(state, tick, dagster_url)
        for state in instance.all_instigator_state()
        if state.name in known
        for tick in instance.get_ticks(
            state.instigator_origin_id, state.selector_id, limit=1, statuses=_FINISHED_TICKS
        )
    ]
    # One whose code was loaded from another place before is remembered twice.
    return {each.key: each for each in sorted(seen, key=attrgetter("order"))}.values()


def of_promotion(entry: Entry) -> Signal:
    """The signal of an entry of the promotion ledger."""
    subject = f"version {entry.version}" if entry.version else "a challenger"
    reason = f"Promotion of {subject} (rollout {entry.rollout}): {entry.step.value}, {entry.reason}"
    if entry.step is Step.APPROVAL_AWAITED:
        condition = Condition.FIRING
    else:
        condition = Condition.EVENT if entry.step in _FAILURES else Condition.OK
    return Signal(
        key=f"promotion {entry.rollout}",
        order=entry.number,
        condition=condition,
        text=f"{reason.rstrip('.')}; see the asset promotion_ledger.",
        severe=_FAILURES.get(entry.step, False),
    )


def _of_check(run: dg.DagsterRun, entry: dg.EventLogEntry, order: float, link: RunLink) -> Signal:
    check = entry.get_dagster_event().asset_check_evaluation_data
    # A check of a window is not partitioned itself.
    window = _window(run)
    subject = f"Check {check.check_name} on {check.asset_key.to_user_string()}"
    of_window = f" of {window}" if window else ""
    reason = check.description or "see its metadata"
    outcome = "passes again" if check.passed else "did not pass"
    return Signal(
        key=subject,
        order=order,
        condition=_condition(check),
        text=f"{subject}{of_window} {outcome} in run {run.run_id}: {reason}",
        severe=check.severity == dg.AssetCheckSeverity.ERROR,
        link=link(run.run_id),
        window=window,
    )


def _condition(check: dg.AssetCheckEvaluation) -> Condition:
    if UNDECIDED in check.metadata:
        return Condition.UNDECIDED
    return Condition.OK if check.passed else Condition.FIRING


def _of_work(
    instance: dg.DagsterInstance, run: dg.DagsterRun, ending: dg.EventLogEntry, link: RunLink
) -> Iterator[Signal]:
    key, cause = _work(run), ""
    match ending.get_dagster_event().event_type:
        case dg.DagsterEventType.RUN_FAILURE:
            reason = _cause(instance, ending)
            condition, text = Condition.FIRING, f"{key} failed in run {run.run_id}: {reason}"
            cause = f"{run.job_name}: {_PARTICULAR.sub('#', reason)}"
        case dg.DagsterEventType.RUN_SUCCESS if _is_made_up_for(instance, run):
            condition, text = Condition.OK, f"{key} succeeds again, in run {run.run_id}."
        case _:
            # Whoever cancelled it knows, and a success of other assets says nothing.
            return
    address = link(run.run_id)
    yield Signal(key, ending.timestamp, condition, text, True, address, cause=cause)


def _work(run: dg.DagsterRun) -> str:
    """The name of the run's work: its job, and its window if it has one."""
    subject = run.job_name
    if subject == _AD_HOC:
        chosen = sorted(key.to_user_string() for key in run.asset_selection or ())
        subject = f"materializing {', '.join(chosen)}"
    window = _window(run)
    return f"Run of {subject}{f' of {window}' if window else ''}"


def _is_made_up_for(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether each failed run of the work of `run` was followed by success with all its assets.

    Runs of a job may be of some of its assets only: then they make up for no others.
    """
    filters = dg.RunsFilter(
        job_name=run.job_name,
        statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE],
        tags={PARTITION_TAG: _window(run)} if _window(run) else {},
    )
    records = instance.get_run_records(filters, MAXIMUM_RUNS)
    same = [record for record in records if _work(record.dagster_run) == _work(run)]
    if all(record.dagster_run.is_success for record in same):
        return True
    made: set[dg.AssetKey] = set()
    for record in sorted(same, key=lambda each: each.end_time or 0.0, reverse=True):
        planned = _planned(instance, record.dagster_run)
        if record.dagster_run.is_success:
            made |= planned
        elif not planned <= made:
            return False
    return True


def _planned(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[dg.AssetKey]:
    """The assets that the run was to make."""
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    events = instance.all_logs(run.run_id, of_type=planned)
    return {
        event.get_dagster_event().asset_materialization_planned_data.asset_key for event in events
    }


def _window(run: dg.DagsterRun) -> str:
    return run.tags.get(PARTITION_TAG, "")


def _cause(instance: dg.DagsterInstance, failure: dg.EventLogEntry) -> str:
    event = failure.get_dagster_event()
    data = event.event_specific_data
    # A run that something else declared failed has no data, one that failed in a step no error.
    step = data.first_step_failure_event if isinstance(data, JobFailureData) else None
    own = data.error if isinstance(data, JobFailureData) else None
    error = own or (step.step_failure_data.error if step else None)
    if error is None and (event.message or "").startswith(_DECLARED):
        # It never began: an engine event before its failure has the cause.
        error = _engine_error(instance, failure.run_id)
    return _message(error) if error else str(event.message)


def _engine_error(instance: dg.DagsterInstance, run_id: str) -> SerializableErrorInfo | None:
    """The last error that Dagster itself had with the run."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    data = [event.get_dagster_event().event_specific_data for event in events]
    errors = [each.error for each in data if isinstance(each, EngineEventData) and each.error]
    return errors[-1] if errors else None


def _of_tick(state: InstigatorState, tick: InstigatorTick, dagster_url: str) -> Signal:
    kind = state.instigator_type.value.lower()
    subject = f"{kind.capitalize()} {state.name}"
    failed = state.is_running and tick.status is TickStatus.FAILURE
    # A tick that is tried again keeps its time; to be turned off is later than the last tick.
    order = (tick.end_timestamp or tick.timestamp) + (0.0 if state.is_running else 1e-3)
    cause = _message(tick.error) if tick.error else "see its ticks"
    if failed:
        text = f"{subject} fails: {cause}"
    else:
        text = f"{subject} {'works again' if state.is_running else 'was turned off'}."
    return Signal(
        key=subject,
        order=order,
        condition=Condition.FIRING if failed else Condition.OK,
        text=text,
        severe=True,
        link=f"{dagster_url.rstrip('/')}/automation" if dagster_url else "",
        cause=f"{kind}: {_PARTICULAR.sub('#', cause)}" if failed else "",
    )


def _message(error: SerializableErrorInfo) -> str:
    """The message of the error that Dagster has wrapped; of a `UserError`, its sentence alone."""
    while error.cause is not None and str(error.cls_name).endswith("ExecutionError"):
        error = error.cause
    name, _, sentence = error.message.strip().partition(": ")
    return sentence if name.startswith("mlschool_dagster.") else error.message.strip()
