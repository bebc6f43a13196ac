"""What the assets of one hourly window share: its partition, its frozen files and its reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.assets.common import OWNERS
from mlschool_dagster.atomic import replacing
from mlschool_dagster.capture.windows import KEY_FORMAT, Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.spec import DataSpec
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.resources.tracking import MlflowTracking

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.monitoring.page import Subject

# The window of the current hour exists as soon as the hour begins.
WINDOWS = dg.HourlyPartitionsDefinition(
    start_date="2026-01-01-00:00", timezone="UTC", fmt=KEY_FORMAT, end_offset=1
)

GROUP = "monitoring"
TRAFFIC_FILE = "captured_traffic.parquet"
LABELS_FILE = "labels.parquet"
CAPTURES_TOKEN = "captures_token"  # noqa: S105 - names a state of the store
LABELS_TOKEN = "labels_token"  # noqa: S105
REFUSALS = "refusals"


class ReportConfig(dg.Config):
    """How a report is drawn."""

    samples: int = Field(
        default=1000,
        ge=1,
        description="Most rows that Evidently draws; every row is counted all the same.",
    )


def windowed_asset(
    name: str,
    *,
    deps: Sequence[str],
    kinds: set[str],
    description: str,
    check_specs: Sequence[dg.AssetCheckSpec] = (),
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Declares an asset with one partition per window."""
    return dg.asset(
        name=name,
        deps=deps,
        group_name=GROUP,
        kinds=kinds,
        owners=OWNERS,
        code_version="1",
        partitions_def=WINDOWS,
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
        newest = max(store.windows(), default=None)
    if newest is None:
        raise UserError("No window was chosen and none has captures yet; send traffic first.")
    raise UserError(
        "No window was chosen; name one by the tag dagster/partition, the newest with captures "
        f'is {newest.key}: --tags \'{{"dagster/partition": "{newest.key}"}}\'.'
    )


def freeze(
    frame: "pd.DataFrame", token: str, files: PlatformFiles, window: Window, name: str
) -> Path:
    """Keep `frame` as the window's file `name`, together with the store's `token` for it.

    The frame's ``attrs`` are kept with it.
    """
    path = files.window(window, name)
    frame.attrs["token"] = token
    with replacing(path) as temporary:
        frame.to_parquet(temporary)
    return path


def frozen(files: PlatformFiles, window: Window, name: str) -> "tuple[pd.DataFrame, str]":
    """The window's file `name`, and the store's token when it was frozen.

    Raises:
        UserError: the window has not been frozen.
    """
    import pandas as pd

    path = files.window(window, name)
    if not path.exists():
        asset = name.removesuffix(".parquet")
        raise UserError(f"{asset} of window {window.key} is missing; materialize it first.")
    frame = pd.read_parquet(path)
    return frame, str(frame.attrs["token"])


def covered_token(
    instance: dg.DagsterInstance, window: Window, reports: Sequence[str], token_name: str
) -> str | None:
    """The store's token that the newest materializations of all `reports` of `window` have read.

    None if one of them was never made, or if they have read different states of the store.
    """
    tokens: set[str | None] = set()
    for report in reports:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(report), asset_partitions=[window.key]),
            limit=1,
        ).records
        materialization = records[0].asset_materialization if records else None
        metadata = materialization.metadata if materialization else {}
        tokens.add(str(metadata[token_name].value) if token_name in metadata else None)
    return tokens.pop() if len(tokens) == 1 else None


@dataclass(frozen=True, slots=True)
class MonitoredWindow:
    """A window's frozen traffic beside the reference of the version that served it last."""

    window: Window
    current: "pd.DataFrame"
    captures_token: str
    refusals: dict[str, int]
    reference: "pd.DataFrame"
    subject: "Subject"

    def metadata(self) -> dict[str, str | int]:
        """What every report says of itself: version, window, reference and row counts."""
        return {
            "window": self.window.key,
            "model_version": self.subject.model_version,
            "reference": self.subject.reference,
            "rows": len(self.current),
            "reference_rows": len(self.reference),
            CAPTURES_TOKEN: self.captures_token,
        }


def monitored_window(
    window: Window, spec: DataSpec, files: PlatformFiles, mlflow: MlflowTracking
) -> MonitoredWindow:
    """The frozen `window` with its reference.

    The reference is that of the version of the window's newest capture; an empty window is compared
    with the champion.

    Raises:
        UserError: the window is not frozen, or its version is not registered.
    """
    import pandas as pd

    from mlschool_dagster.modeling.version_folder import REFERENCE_FILE
    from mlschool_dagster.monitoring.page import Subject

    current, token = frozen(files, window, TRAFFIC_FILE)
    registry = mlflow.registry(spec.name)
    if len(current):
        version = str(current["model_version"].iloc[-1])
    else:
        version = registry.resolve("champion").version
    folder = registry.fetch(version, files.versions)
    reference = pd.read_parquet(folder / REFERENCE_FILE)
    origin = f"training data of version {version} with out-of-fold predictions"
    return MonitoredWindow(
        window,
        current,
        token,
        current.attrs[REFUSALS],
        reference,
        Subject(spec.name, version, window.key, origin),
    )
