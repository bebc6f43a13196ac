"""Shared parts of the assets of one hourly window: its partition, snapshots and reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.windows import KEY_FORMAT, Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import MODEL_VERSION, DataSpec
from mlschool_dagster.defs.common import OWNERS, PlainConfig
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.monitoring.report_pages import Subject
    from mlschool_dagster.monitoring.snapshot import ParquetSnapshot

GROUP = "monitoring"
TRAFFIC_FILE = "captured_traffic.parquet"
LABELS_FILE = "labels.parquet"
CAPTURES_TOKEN = "captures_token"  # noqa: S105 - names a state of the store
LABELS_TOKEN = "labels_token"  # noqa: S105
TOKEN = "token"  # noqa: S105
REFUSALS = "refusals"
PARTITION_TAG = "dagster/partition"
"""Tag of a run that names its window."""


class ReportConfig(PlainConfig):
    """Options of a report's plots."""

    samples: int = Field(
        default=1000,
        ge=1,
        description="Most rows that Evidently draws; every row is counted all the same.",
    )


def partitions(first: Window) -> dg.HourlyPartitionsDefinition:
    """One partition per window from `first` on; that of the current hour exists as it begins."""
    return dg.HourlyPartitionsDefinition(
        start_date=first.start, timezone="UTC", fmt=KEY_FORMAT, end_offset=1
    )


def windowed_asset(
    key: dg.AssetKey,
    windows: dg.PartitionsDefinition[str],
    *,
    deps: Sequence[dg.AssetKey],
    kinds: set[str],
    description: str,
    check_specs: Sequence[dg.AssetCheckSpec] = (),
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Declares an asset with one partition for each of `windows`."""
    return dg.asset(
        key=key,
        deps=deps,
        group_name=GROUP,
        kinds=kinds,
        owners=OWNERS,
        code_version="1",
        partitions_def=windows,
        description=description,
        check_specs=check_specs,
    )


def chosen_window(context: dg.AssetExecutionContext, captures: Captures) -> Window:
    """The window that this run is about.

    Raises:
        UserError: none was chosen; the sentence names the newest window with captures.
    """
    if context.has_partition_key:
        return Window.from_key(context.partition_key)
    with captures.open() as store:
        present = Window.of(utc_now())
        newest = [window.key for window in store.newest_windows() if window <= present]
    if not newest:
        raise UserError("No window was chosen and none has captures yet; send traffic first.")
    raise UserError(
        "No window was chosen; name one by the tag dagster/partition, the newest with captures "
        f'is {newest[0]}: --tags \'{{"dagster/partition": "{newest[0]}"}}\'.'
    )


def window_snapshot(files: PlatformFiles, window: Window, name: str) -> "ParquetSnapshot":
    """The window's file `name`.

    Raises:
        UserError: there is no snapshot of the window.
    """
    from mlschool_dagster.monitoring.snapshot import ParquetSnapshot

    try:
        return ParquetSnapshot(files.window(window, name).local())
    except FileNotFoundError:
        asset = name.removesuffix(".parquet")
        raise UserError(
            f"{asset} of window {window.key} is missing; materialize it first."
        ) from None


def covered_token(
    instance: dg.DagsterInstance, window: Window, reports: Sequence[dg.AssetKey], token_name: str
) -> str | None:
    """The store's token that the newest materializations of all `reports` of `window` have read.

    None if one of them was never made, or if they have read different states of the store.
    """
    tokens: set[str | None] = set()
    for report in reports:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=report, asset_partitions=[window.key]),
            limit=1,
        ).records
        materialization = records[0].asset_materialization if records else None
        metadata = materialization.metadata if materialization else {}
        tokens.add(str(metadata[token_name].value) if token_name in metadata else None)
    return tokens.pop() if len(tokens) == 1 else None


@dataclass(frozen=True, slots=True)
class MonitoredWindow:
    """The snapshot of a window's traffic beside the reference of the version that served last."""

    window: Window
    table: "ParquetSnapshot"
    """The traffic, one row a capture, as `snapshot.captures_table` shapes it."""
    reference: "pd.DataFrame"
    subject: "Subject"

    @property
    def rows(self) -> int:
        """Number of captures in the window."""
        return self.table.rows

    @property
    def refusals(self) -> dict[str, int]:
        """Refused rows of the window, by reason."""
        return dict(self.table.facts[REFUSALS])

    def metadata(self) -> dict[str, str | int]:
        """Metadata common to all reports: version, window, reference and row counts."""
        return {
            "window": self.window.key,
            "model_version": self.subject.model_version,
            "reference": self.subject.reference,
            "rows": self.rows,
            "reference_rows": len(self.reference),
            CAPTURES_TOKEN: self.table.facts[TOKEN],
        }


def version_folder(
    version: str, spec: DataSpec, files: PlatformFiles, mlflow: MlflowTracking
) -> Path:
    """The folder of a version that has answered: as it was deployed, else fetched now.

    Raises:
        UserError: it was not deployed from here, and the registry has no such version.
    """
    from mlschool_dagster.modeling.registry import fetched

    folder = fetched(spec.name, version, files.versions)
    return folder or mlflow.registry(spec.name).fetch(version, files.versions)


def monitored_window(
    window: Window, spec: DataSpec, files: PlatformFiles, mlflow: MlflowTracking
) -> MonitoredWindow:
    """The snapshot of `window` with its reference.

    The reference is that of the version of the window's newest capture; an empty window is compared
    with the champion.

    Raises:
        UserError: there is no snapshot, or its version is not registered.
    """
    import pandas as pd

    from mlschool_dagster.modeling.version_folder import REFERENCE_FILE
    from mlschool_dagster.monitoring.report_pages import Subject

    table = window_snapshot(files, window, TRAFFIC_FILE)
    if table.rows:
        version = str(table.tail(1)[MODEL_VERSION].item())
    else:
        version = mlflow.registry(spec.name).resolve("champion").version
    reference = pd.read_parquet(version_folder(version, spec, files, mlflow) / REFERENCE_FILE)
    origin = f"training data of version {version} with out-of-fold predictions"
    return MonitoredWindow(
        window, table, reference, Subject(spec.name, version, window.key, origin)
    )
