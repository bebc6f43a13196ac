"""Captures: one hour of traffic, and its ground truth as far as it is known."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import MODEL_VERSION, ROLE, DataSpec
from mlschool_dagster.defs.common import (
    OWNERS,
    UNFINISHED,
    outcomes,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import (
    CAPTURE_IMPORT,
    CAPTURED_TRAFFIC,
    ENDPOINT,
    LABELS,
    LIVE_TRAFFIC,
    REPORTS,
)
from mlschool_dagster.defs.monitoring.windows import (
    CAPTURES_TOKEN,
    GROUP,
    LABELS_FILE,
    LABELS_TOKEN,
    PARTITION_TAG,
    REFUSALS,
    TOKEN,
    TRAFFIC_FILE,
    chosen_window,
    covered_token,
    windowed_asset,
)
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.snapshot import ParquetSnapshot

KNOWN_LABELS = "known_labels"
PREVIEW_ROWS = 8
CLASSES_SHOWN = 100
WINDOWS_CHECKED = 48
HANGING = timedelta(hours=1)
"""Time that a window's run may be queued or running before it counts as dead."""

REPORTING_TIME = timedelta(minutes=10)
"""Time after a window's end within which the reports must cover its last captures."""


def build_live_traffic(spec: DataSpec) -> dg.AssetSpec:
    """The outside world, which sends requests whenever it likes."""
    return dg.AssetSpec(
        LIVE_TRAFFIC,
        group_name=GROUP,
        kinds={"http"},
        owners=OWNERS,
        description=f"Requests that clients send to the {spec.name} endpoint, and the ground truth "
        "that labellers find out later. Nothing here makes it; traffic_job and labeling_job "
        "stand in for it.",
    )


def build_captured_traffic(
    spec: DataSpec, windows: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset ``captured_traffic``: the snapshot of a window's requests and predictions."""

    @windowed_asset(
        CAPTURED_TRAFFIC,
        windows,
        deps=[ENDPOINT, LIVE_TRAFFIC, CAPTURE_IMPORT],
        kinds={"parquet", "pandas"},
        description="Snapshot (Parquet) of one hour's requests and predictions as they are in the "
        "capture store now, with the counts of what was refused.",
    )
    def traffic(
        context: dg.AssetExecutionContext, captures: Captures, files: PlatformFiles
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.snapshot import ParquetSnapshot, write_captures

        with plain_errors():
            window = chosen_window(context, captures)
            place = files.new_in_window(window, TRAFFIC_FILE)
            with captures.open() as store:
                # The token is read first: rows that land in between are covered, but not claimed.
                token = store.captures_token(window)
                refusals = store.refusals(window)
                facts = {TOKEN: token, REFUSALS: refusals}
                with place.writing() as path:
                    write_captures(store.stream_columns(window), spec, path, **facts)
            snapshot = ParquetSnapshot(place.local())
            refused = sum(refusals.values())
            context.log.info(f"{snapshot.rows} captures in window {window.key}, {refused} refusals")
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": snapshot.rows,
                    "window": window.key,
                    "model_versions": table(_by_version(snapshot)),
                    "refused": float(refused),
                    "preview": table(snapshot.tail(PREVIEW_ROWS).to_dict("records")),
                    "path": dg.MetadataValue.path(place.uri),
                    CAPTURES_TOKEN: token,
                },
                data_version=dg.DataVersion(token),
            )

    return traffic


def build_labels(spec: DataSpec, windows: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset ``labels``: the ground truth of a window, as far as it is known."""

    @windowed_asset(
        LABELS,
        windows,
        deps=[CAPTURED_TRAFFIC],
        kinds={"parquet", "pandas"},
        description=f"Ground truth ({spec.target.name}) of one hour's captures, joined by event "
        "id, as far as it has arrived.",
        check_specs=[
            dg.AssetCheckSpec(
                KNOWN_LABELS,
                asset=LABELS,
                description=f"Every label is one of {spec.target.name}'s classes, spelt as they "
                "are; any other one is no evidence of anything.",
            )
        ],
    )
    def window_labels(
        context: dg.AssetExecutionContext,
        captures: Captures,
        files: PlatformFiles,
        history: History,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.metric_records import check_metrics
        from mlschool_dagster.monitoring.snapshot import ParquetSnapshot, write_labels

        with plain_errors():
            window = chosen_window(context, captures)
            place = files.new_in_window(window, LABELS_FILE)
            with captures.open() as store:
                revision = store.revision(window)
                columns = store.stream_label_columns(window)
                with place.writing() as path:
                    write_labels(columns, path, **{TOKEN: revision.labels_token})
            snapshot = ParquetSnapshot(place.local())
            context.log.info(f"{snapshot.rows} labels in window {window.key}")
            classes = snapshot.counts("label")
            strange = {
                label: rows
                for (label,), rows in classes.items()
                if label not in spec.target.classes
            }
            results = [_known_labels(window, strange, snapshot.rows)]
            with history.metrics() as metrics:
                metrics.record(
                    window,
                    "labels",
                    check_metrics(window, outcomes(results)) if snapshot.rows else (),
                )
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": snapshot.rows,
                    "window": window.key,
                    "coverage": snapshot.rows / revision.captures if revision.captures else 0.0,
                    "classes": table(
                        {"class": label, "rows": rows}
                        for (label,), rows in islice(classes.items(), CLASSES_SHOWN)
                    ),
                    "unknown_labels": float(sum(strange.values())),
                    "path": dg.MetadataValue.path(place.uri),
                    LABELS_TOKEN: revision.labels_token,
                },
                data_version=dg.DataVersion(revision.labels_token),
                check_results=results,
            )

    return window_labels


def _known_labels(window: Window, strange: dict[str, int], labels: int) -> dg.AssetCheckResult:
    from mlschool_dagster.monitoring.performance import unknown_labels_summary

    sentence = f"All {labels} labels of {window.key} are classes."
    if strange:
        sentence = f"Labels of {window.key}: {unknown_labels_summary(strange)}"
    return dg.AssetCheckResult(
        check_name=KNOWN_LABELS,
        passed=not strange,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence,
        metadata={"unknown_labels": float(sum(strange.values())), **undecided(not labels)},
    )


@dg.asset_check(
    asset=CAPTURED_TRAFFIC,
    additional_deps=REPORTS,
)
def coverage(context: dg.AssetCheckExecutionContext, captures: Captures) -> dg.AssetCheckResult:
    """Every capture of the newest 48 windows with traffic is covered by all three reports."""
    uncovered: list[dict[str, str | int | bool]] = []
    with plain_errors(), captures.open() as store:
        # What a clock that was ahead captured has no report before its hour has come.
        begun = [w for w in store.newest_windows() if w.start <= utc_now()]
        windows = begun[:WINDOWS_CHECKED]
        for window in windows:
            covered = covered_token(context.instance, window, REPORTS, CAPTURES_TOKEN)
            if covered != store.captures_token(window):
                # Captures that land while a run reads earlier ones are no failure yet.
                on_its_way = window.end + REPORTING_TIME >= utc_now() or _is_monitored(
                    context.instance, window
                )
                uncovered.append(
                    {
                        "window": window.key,
                        "captures": store.count(window),
                        "on_its_way": on_its_way,
                    }
                )
    overdue = [str(entry["window"]) for entry in uncovered if not entry["on_its_way"]]
    coming = [str(entry["window"]) for entry in uncovered if entry["on_its_way"]]
    sentence = f"Every capture of {len(windows)} windows is in every report."
    if overdue:
        sentence = f"Captures of {', '.join(overdue)} are not in every report."
    elif coming:
        sentence = f"Captures of {', '.join(coming)} are on their way into the reports."
    return dg.AssetCheckResult(
        passed=not overdue,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence,
        metadata={
            "uncovered": table(uncovered),
            **undecided(bool(coming) and not overdue),
        },
    )


def _is_monitored(instance: dg.DagsterInstance, window: Window) -> bool:
    """Whether a run of the window waits for its turn, or works; not one that has hung for long."""
    under_way = dg.RunsFilter(
        statuses=UNFINISHED,
        tags={PARTITION_TAG: window.key},
        updated_after=datetime.now(UTC) - HANGING,
    )
    return bool(instance.get_run_records(under_way, limit=1))


def _by_version(snapshot: "ParquetSnapshot") -> list[dict[str, str | int]]:
    return [
        {MODEL_VERSION: version, ROLE: role, "rows": rows}
        for (version, role), rows in snapshot.counts(MODEL_VERSION, ROLE).items()
    ]
