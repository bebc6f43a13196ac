"""Import of captures and labels that others leave as objects: the asset, its job and its sensor."""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import OWNERS, UNFINISHED, plain_errors, table
from mlschool_dagster.defs.keys import CAPTURE_IMPORT, LIVE_TRAFFIC
from mlschool_dagster.defs.monitoring.windows import GROUP
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.captures import Captures, CaptureSources
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.capture.import_log import ImportFault
    from mlschool_dagster.capture.importer import ImportReport
    from mlschool_dagster.capture.store import CaptureStore

SHOWN = 50
"""Objects and faults that the tables show."""
FAULTS_COUNT_FOR = timedelta(days=1)
"""Time for which an unreadable line fails the check."""
IMPORT_SECONDS = 3600
"""Time limit of an import; the next one continues where it stopped."""


@dg.asset(
    key=CAPTURE_IMPORT,
    deps=[LIVE_TRAFFIC],
    group_name=GROUP,
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            "lines_are_readable",
            asset=CAPTURE_IMPORT,
            description="Every line that arrived within the last day could be imported.",
        )
    ],
)
def capture_import(
    context: dg.AssetExecutionContext,
    captures: Captures,
    capture_sources: CaptureSources,
    history: History,
    endpoint: EndpointResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Captures, labels and counts of refused requests that others leave as objects.

    Each row goes into the capture store exactly once. What cannot be read stays where it is and
    is named here.
    """
    from mlschool_dagster.capture.importer import Importer
    from mlschool_dagster.deployment.ledger import primary_at

    with plain_errors(), captures.open() as store:
        if not capture_sources.are_set:
            raise UserError(
                "No capture source is set; name a folder or a URI by MLSCHOOL_CAPTURE_SOURCE."
            )
        entries = history.deployment_entries(endpoint.name)
        sources = capture_sources.sources(lambda _, time: primary_at(entries, time))
        reports = [Importer(source, store, utc_now).run() for source in sources]
        since = utc_now() - FAULTS_COUNT_FOR
        faults = [store.import_faults(source.name, since, SHOWN) for source in sources]
        summary = [_row(report, store) for report in reports]
    count = sum(number for number, _ in faults)
    for report in reports:
        context.log.info(
            f"{report.captures} captures and {report.labels} labels of {report.objects} objects in "
            f"{report.source}; {report.fault_count} lines could not be read"
        )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(report.captures for report in reports),
            "objects": float(sum(report.objects for report in reports)),
            "rows": float(sum(report.captures + report.labels for report in reports)),
            "faults": float(sum(report.fault_count for report in reports)),
            **_lag(reports),
            "sources": table(summary),
            "objects_read": table(_objects(reports)),
            "unreadable": table(_fault(fault) for _, some in faults for fault in some[:SHOWN]),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="lines_are_readable",
                passed=count == 0,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"Lines of the last day that could not be imported: {count}.",
            )
        ],
    )


def _row(report: "ImportReport", store: "CaptureStore") -> dict[str, str | int]:
    known, waiting = store.imported_objects(report.source)
    return {
        "source": report.source,
        "objects": report.objects,
        "captures": report.captures,
        "duplicates": report.duplicates,
        "labels": report.labels,
        "refused": report.refusals,
        "faults": report.fault_count,
        "objects_known": known,
        "objects_incomplete": waiting,
    }


def _lag(reports: "list[ImportReport]") -> dict[str, float]:
    """Mean and maximum time between the request of a capture and this import."""
    means = [report.mean_lag for report in reports if report.mean_lag is not None]
    if not means:
        return {}
    longest = max(report.longest_lag for report in reports)
    return {
        "lag_seconds": max(means).total_seconds(),
        "longest_lag_seconds": longest.total_seconds(),
    }


def _objects(reports: "list[ImportReport]") -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"source": report.source, "object": name, "rows": rows}
        for report in reports
        for name, rows in report.rows.items()
    ]
    return rows[:SHOWN]


def _fault(fault: "ImportFault") -> dict[str, str | int]:
    return {"object": fault.object_name, "line": fault.line, "reason": fault.reason}


capture_import_job = dg.define_asset_job(
    "capture_import_job",
    dg.AssetSelection.assets(CAPTURE_IMPORT),
    description="Import the captures and labels that others have left as objects.",
    tags={"stage": "monitoring", "dagster/max_runtime": IMPORT_SECONDS},
)


def build_capture_import_sensor(interval: timedelta, is_set: bool) -> dg.SensorDefinition:
    """The sensor ``capture_import_sensor``: one evaluation per `interval` if a source is set."""

    @dg.sensor(
        name="capture_import_sensor",
        job=capture_import_job,
        minimum_interval_seconds=int(interval.total_seconds()),
        default_status=dg.DefaultSensorStatus.RUNNING if is_set else dg.DefaultSensorStatus.STOPPED,
        description="Requests an import when a bounded listing of the capture sources shows "
        "something new; one at a time.",
    )
    def capture_import_sensor(
        context: dg.SensorEvaluationContext, captures: Captures, capture_sources: CaptureSources
    ) -> dg.SensorResult:
        from mlschool_dagster.capture.importer import has_unread

        if not capture_sources.are_set:
            return _skip("No capture source is set (MLSCHOOL_CAPTURE_SOURCE).")
        busy = dg.RunsFilter(job_name=capture_import_job.name, statuses=UNFINISHED)
        if context.instance.get_run_records(busy, limit=1):
            return _skip("An import is under way.")
        with captures.open() as store:
            for source in capture_sources.sources():
                if has_unread(source, store, utc_now()):
                    return dg.SensorResult(run_requests=[dg.RunRequest()])
        return _skip("Nothing new has arrived.")

    return capture_import_sensor


def _skip(reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason))
