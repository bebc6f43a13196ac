"""Retention job: delete data older than its retention period, or report what would be deleted."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import PERFORMANCE_REPORT, REPORTS
from mlschool_dagster.defs.monitoring.windows import CAPTURES_TOKEN, LABELS_TOKEN, covered_token
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.retention import (
    Deletion,
    bound,
    delete_captures,
    delete_datasets,
    delete_files,
    delete_metrics,
    delete_run_folders,
)
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History

BATCH = 200
_FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


class RetentionConfig(PlainConfig):
    """Retention period of each kind of data."""

    capture_days: int = Field(
        default=0, description="Days to keep captures, labels and refusals; 0: for ever."
    )
    report_days: int = Field(
        default=0,
        description="Days to keep snapshots and reports of windows, predictions of batches, and "
        "data sets that are no asset's newest state; 0: for ever.",
    )
    metric_days: int = Field(
        default=0, description="Days to keep the history of metrics; 0: for ever."
    )
    run_days: int = Field(
        default=0,
        description="Days to keep Dagster's finished runs with their events and logs; 0: for ever.",
    )
    dry_run: bool = Field(default=True, description="Only report what would be deleted.")


@dg.op(
    out=dg.Out(dg.Nothing),
)
def retention(
    context: dg.OpExecutionContext,
    config: RetentionConfig,
    captures: Captures,
    files: PlatformFiles,
    history: History,
) -> None:
    """Delete what is older than configured, in small batches, or report what would be deleted."""
    with plain_errors():
        deletions = list(_outgoing(context.instance, config, captures, files, history))
    for one in deletions:
        context.log.info(
            f"{one.kind} before {one.before:%Y-%m-%d %H:%M}: {one.items} "
            f"{'to delete' if config.dry_run else 'deleted'}, {one.kept} kept"
            f"{f': {one.remark}' if one.remark else ''}"
        )
    context.add_output_metadata(
        {
            "to delete" if config.dry_run else "deleted": table(one.row() for one in deletions),
            "dry_run": config.dry_run,
        }
    )
    with plain_errors():
        if failed := [one.remark for one in deletions if one.failed]:
            raise UserError(" ".join(failed))


@dg.job(
    tags={"stage": "retention"},
    executor_def=dg.in_process_executor,
)
def retention_job() -> None:
    """Delete captures, labels, snapshots, reports, metrics and runs that are older than configured.

    By default everything is kept and nothing is deleted: see the configuration.
    """
    retention()


_DAYS = {"capture_days": 90, "report_days": 90, "metric_days": 365, "run_days": 30}
weekly_retention = dg.ScheduleDefinition(
    name="weekly_retention",
    job=retention_job,
    cron_schedule="0 4 * * 0",
    execution_timezone="UTC",
    run_config={"ops": {"retention": {"config": {**_DAYS, "dry_run": False}}}},
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Deletes every Sunday at 04:00 UTC captures and reports after 90 days, metrics "
    "after a year and runs after 30 days.",
)


def _outgoing(
    instance: dg.DagsterInstance,
    config: RetentionConfig,
    captures: Captures,
    files: PlatformFiles,
    history: History,
) -> Iterator[Deletion]:
    now = utc_now()
    with captures.open() as store:
        if before := bound(config.capture_days, now):

            def is_covered(window: Window) -> bool:
                return _is_covered(instance, store, window)

            yield delete_captures(store, before, is_covered, config.dry_run)
        if before := bound(config.report_days, now):
            yield delete_files(files.windows, before, config.dry_run)
            folders = [*files.batches.children(), *files.ground_truths.children()]
            yield delete_run_folders(folders, before, config.dry_run)
            needed = _needed_digests(instance)
            yield delete_datasets(files.datasets, needed, before, config.dry_run)
        if before := bound(config.metric_days, now):
            with history.metrics() as metrics:
                yield delete_metrics(metrics, before, config.dry_run)
        if before := bound(config.run_days, now):
            yield delete_runs(instance, before, store.newest_windows(), config.dry_run)


def _needed_digests(instance: dg.DagsterInstance) -> set[str]:
    """The digests of the data sets that the newest materializations have written or read."""
    newest = [
        record.asset_materialization
        for key in instance.all_asset_keys()
        for record in instance.fetch_materializations(key, limit=1).records
    ]
    return {
        str(value.value)
        for materialization in newest
        if materialization is not None
        for name, value in materialization.metadata.items()
        if name.endswith("digest")
    }


def _is_covered(instance: dg.DagsterInstance, store: CaptureStore, window: Window) -> bool:
    captures = covered_token(instance, window, REPORTS, CAPTURES_TOKEN)
    labels = covered_token(instance, window, (PERFORMANCE_REPORT,), LABELS_TOKEN)
    return captures == store.captures_token(window) and labels == store.labels_token(window)


def delete_runs(
    instance: dg.DagsterInstance, before: datetime, windows: list[Window], dry_run: bool
) -> Deletion:
    """Deletes finished runs before `before` with their events and logs, but for the newest state.

    That is the newest materialization and observation of each asset, and of each of `windows`,
    which still hold captures: the sensors judge by it what a report covers.
    """
    needed = _needed_runs(instance, {window.key for window in windows})
    old = list(_finished_runs(instance, before))
    deletions = [run_id for run_id in old if run_id not in needed]
    if not dry_run:
        for run_id in deletions:
            _delete(instance, run_id)
    kept = len(old) - len(deletions)
    remark = "they made the newest state of an asset" if kept else ""
    return Deletion("runs", before, 0, len(deletions), kept, remark)


def _finished_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[str]:
    filters = dg.RunsFilter(statuses=_FINISHED, created_before=before)
    cursor: str | None = None
    while records := instance.get_run_records(filters, limit=BATCH, cursor=cursor):
        for record in records:
            yield record.dagster_run.run_id
        cursor = records[-1].dagster_run.run_id


def _needed_runs(instance: dg.DagsterInstance, partitions: set[str]) -> set[str]:
    needed: set[str] = set()
    for asset_key in instance.all_asset_keys():
        for fetch in (instance.fetch_materializations, instance.fetch_observations):
            needed.update(record.run_id for record in fetch(asset_key, limit=1).records)
        needed.update(_runs_of_partitions(instance, asset_key, partitions))
    return needed


def _runs_of_partitions(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, partitions: set[str]
) -> Iterator[str]:
    """The runs that made the newest state of those of `partitions` that the asset has."""
    newest = instance.get_latest_storage_id_by_partition(
        asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    ids = iter([number for partition, number in newest.items() if partition in partitions])
    while batch := list(islice(ids, BATCH)):
        filters = dg.AssetRecordsFilter(asset_key=asset_key, storage_ids=batch)
        for record in instance.fetch_materializations(filters, limit=BATCH).records:
            yield record.run_id


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    # Dagster's SQLite storage keeps a file for each run, which would stay behind, emptied.
    path_for_shard = getattr(instance.event_log_storage, "path_for_shard", None)
    if path_for_shard is not None:
        Path(path_for_shard(run_id)).unlink(missing_ok=True)
