"""Captures: one hour of traffic, and its ground truth as far as it is known."""

import dagster as dg

from mlschool_dagster.assets.common import OWNERS, plain_errors, table
from mlschool_dagster.assets.windows import (
    CAPTURES_TOKEN,
    GROUP,
    LABELS_FILE,
    LABELS_TOKEN,
    REFUSALS,
    TRAFFIC_FILE,
    chosen_window,
    covered_token,
    freeze,
    windowed_asset,
)
from mlschool_dagster.modeling.spec import MODEL_VERSION, ROLE, DataSpec
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles

LIVE_TRAFFIC = "live_traffic"
REPORTS = ("data_quality_report", "drift_report", "performance_report")
PREVIEW_ROWS = 8
WINDOWS_CHECKED = 48


def live_traffic(spec: DataSpec) -> dg.AssetSpec:
    """The outside world, which sends requests whenever it likes."""
    return dg.AssetSpec(
        LIVE_TRAFFIC,
        group_name=GROUP,
        kinds={"http"},
        owners=OWNERS,
        description=f"Requests that clients send to the {spec.name} endpoint, and the ground truth "
        "that experts find out later. Nothing here makes it; traffic_job and labeling_job "
        "stand in for it.",
    )


def captured_traffic(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``captured_traffic``: a window's requests and predictions, frozen."""

    @windowed_asset(
        "captured_traffic",
        deps=["endpoint", LIVE_TRAFFIC],
        kinds={"parquet", "pandas"},
        description="Requests and predictions of one hour, frozen as Parquet as they are in the "
        "capture store now, with the counts of what was refused.",
    )
    def traffic(
        context: dg.AssetExecutionContext, captures: Captures, files: PlatformFiles
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from mlschool_dagster.monitoring.frames import current_frame

        with plain_errors():
            window = chosen_window(context, captures)
            with captures.open() as store:
                # The token is read first: rows that land in between are covered, but not claimed.
                token = store.revision(window).captures_token
                frame = current_frame(store.read(window), spec)
                refusals = store.refusals(window)
            frame.attrs[REFUSALS] = refusals
            path = freeze(frame, token, files, window, TRAFFIC_FILE)
            refused = sum(refusals.values())
            context.log.info(f"{len(frame)} captures in window {window.key}, {refused} refusals")
            versions = frame[[MODEL_VERSION, ROLE]].value_counts().reset_index(name="rows")
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": len(frame),
                    "window": window.key,
                    "model_versions": table(versions.to_dict("records")),
                    "refused": float(refused),
                    "preview": table(frame.tail(PREVIEW_ROWS).to_dict("records")),
                    "path": dg.MetadataValue.path(path),
                    CAPTURES_TOKEN: token,
                },
                data_version=dg.DataVersion(token),
            )

    return traffic


def labels(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``labels``: the ground truth of a window, as far as it is known."""

    @windowed_asset(
        "labels",
        deps=["captured_traffic"],
        kinds={"parquet", "pandas"},
        description=f"Ground truth ({spec.target.name}) of one hour's captures, joined by event "
        "id, as far as it has arrived.",
    )
    def window_labels(
        context: dg.AssetExecutionContext, captures: Captures, files: PlatformFiles
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with plain_errors():
            window = chosen_window(context, captures)
            with captures.open() as store:
                revision = store.revision(window)
                frame = store.read_labels(window)
            path = freeze(frame, revision.labels_token, files, window, LABELS_FILE)
            context.log.info(f"{len(frame)} labels in window {window.key}")
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": len(frame),
                    "window": window.key,
                    "coverage": len(frame) / revision.captures if revision.captures else 0.0,
                    "classes": table(
                        {"class": str(label), "rows": int(rows)}
                        for label, rows in frame["label"].value_counts().items()
                    ),
                    "path": dg.MetadataValue.path(path),
                    LABELS_TOKEN: revision.labels_token,
                },
                data_version=dg.DataVersion(revision.labels_token),
            )

    return window_labels


def coverage_check() -> dg.AssetChecksDefinition:
    """The check ``coverage``: every capture is in a report."""

    @dg.asset_check(
        asset="captured_traffic",
        name="coverage",
        additional_deps=["data_quality_report", "drift_report", "performance_report"],
        description=f"Every capture of the newest {WINDOWS_CHECKED} windows with traffic is "
        "covered by all three reports.",
    )
    def coverage(context: dg.AssetCheckExecutionContext, captures: Captures) -> dg.AssetCheckResult:
        uncovered: list[dict[str, str | int]] = []
        with plain_errors(), captures.open() as store:
            windows = sorted(store.windows(), reverse=True)[:WINDOWS_CHECKED]
            for window in windows:
                state = store.revision(window)
                covered = covered_token(context.instance, window, REPORTS, CAPTURES_TOKEN)
                if covered != state.captures_token:
                    uncovered.append({"window": window.key, "captures": state.captures})
        names = ", ".join(str(entry["window"]) for entry in uncovered)
        return dg.AssetCheckResult(
            passed=not uncovered,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"Captures of {names} are not in every report."
            if uncovered
            else f"Every capture of {len(windows)} windows is in every report.",
            metadata={"uncovered": table(uncovered)},
        )

    return coverage
