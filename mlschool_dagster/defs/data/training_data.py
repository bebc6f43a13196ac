"""Training data: the base data, and on demand the captures whose truth has become known since."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import OWNERS, PlainConfig, metadata_of, plain_errors, table
from mlschool_dagster.defs.data.datasets import read_dataset, write_dataset
from mlschool_dagster.defs.keys import TRAINING_DATA, raw_data_key
from mlschool_dagster.errors import UserError
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.files import PlatformFiles

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.capture.records import Columns
    from mlschool_dagster.modeling.training_data import TrainingData

GROUP = "training"
NAME = TRAINING_DATA.to_user_string()
HELD_OUT = "held_out"
PREVIEW_ROWS = 8

NO_CAPTURES = "none"
LABELLED = "labelled"


class TrainingDataConfig(PlainConfig):
    """Configuration of the captures that are added to the base data."""

    captures: str = Field(
        default=NO_CAPTURES,
        pattern=f"^({NO_CAPTURES}|{LABELLED})$",
        description="none: the base data alone; labelled: with every capture whose truth is known, "
        "but for those put aside to compare versions.",
    )
    windows: int = Field(
        default=24, ge=1, description="Newest windows with labels whose captures are taken."
    )
    maximum_captures: int = Field(
        default=50_000,
        ge=1,
        description="Most labelled captures that are taken, the newest first.",
    )
    held_out_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="Share of the captured inputs, chosen by a hash of their values, on which "
        "nothing is trained, so that versions can be compared on them.",
    )
    accept_new_truth: bool = Field(
        default=False,
        description="Somebody has verified the labels: train on them although they contradict the "
        "base data and come from one source only.",
    )


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """A window's labelled captures, and the store's tokens for what was read of it."""

    window: str
    labelled: int
    captures_token: str
    labels_token: str


def build_training_data(spec: DataSpec) -> dg.AssetsDefinition:
    """The asset ``training_data``: the rows that the next model is trained on."""
    source = raw_data_key(spec)

    @dg.asset(
        key=TRAINING_DATA,
        deps=[source],
        group_name=GROUP,
        kinds={"parquet", "pandas"},
        owners=OWNERS,
        code_version="1",
        output_required=False,
        check_specs=[
            dg.AssetCheckSpec(
                "ground_truth",
                asset=TRAINING_DATA,
                blocking=True,
                description="The labels do not contradict the base data, or several sources agree "
                "that the truth has changed; otherwise nothing is trained on them.",
            ),
            dg.AssetCheckSpec(
                "training_contract",
                asset=TRAINING_DATA,
                blocking=True,
                description="The rows keep the data contract all together; otherwise nothing is "
                "trained on them.",
            ),
        ],
        description="What the next model is trained on: the raw data, and if asked for, captures "
        "with their ground truth, each input once with its newest truth. A share of the captured "
        "inputs is put aside for the comparison of versions.",
    )
    def data(
        context: dg.AssetExecutionContext,
        config: TrainingDataConfig,
        captures: Captures,
        files: PlatformFiles,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:  # type: ignore[type-arg]

        from mlschool_dagster.dataset.contract import violations
        from mlschool_dagster.modeling.training_data import training_data

        with plain_errors():
            origin, base_digest = metadata_of(context, source, "source", "digest")
            base = read_dataset(files, source.to_user_string(), base_digest)
            labelled, windows = _labelled_captures(config, captures, spec)
            result = training_data(
                base,
                labelled,
                spec,
                config.held_out_share,
                accept_new_truth=config.accept_new_truth,
            )
            yield (truth := _truth_check(result))
            broken = violations(result.training, spec, recurring=result.recurring)
            yield dg.AssetCheckResult(
                check_name="training_contract",
                passed=not broken,
                description=" ".join(broken) or f"{len(result.training)} rows keep the contract.",
            )
            if not truth.passed:
                raise UserError(str(truth.description))
            if broken:
                raise UserError(
                    f"With the labelled captures the training data breaks the data contract: "
                    f"{' '.join(broken)} Mend what sends or labels them, or the data spec."
                )
            digest, place = write_dataset(files, NAME, result.training)
            held_out_digest, _ = write_dataset(files, HELD_OUT, result.held_out)
            context.log.info(
                f"{result.base_rows} rows of the base data, {result.captured_rows} captures; "
                f"{len(result.held_out)} captures put aside"
            )
            yield dg.MaterializeResult(
                data_version=dg.DataVersion(digest),
                metadata={
                    **_summary(result, windows, spec),
                    "digest": digest,
                    "source": origin,
                    "base_digest": base_digest,
                    "held_out_digest": held_out_digest,
                    "new_truth": result.truth == "changed",
                    "lineage": dg.MetadataValue.json(_lineage(result, windows, held_out_digest)),
                    "path": dg.MetadataValue.path(place.uri),
                },
            )

    return data


def _labelled_captures(
    config: TrainingDataConfig, captures: Captures, spec: DataSpec
) -> "tuple[pd.DataFrame, list[LabelledWindow]]":
    """The labelled captures of the newest windows that have some, and what was read of each."""
    import pandas as pd

    from mlschool_dagster.capture.records import CAPTURE_FIELDS, as_columns, labels_frame

    frames: list[pd.DataFrame] = []
    windows: list[LabelledWindow] = []
    if config.captures == LABELLED:
        with captures.open() as store:
            for window in store.newest_windows():
                remaining = config.maximum_captures - sum(read.labelled for read in windows)
                if len(windows) == config.windows or remaining <= 0:
                    break
                # The tokens are read first: what lands in between is used, but not claimed.
                tokens = store.captures_token(window), store.labels_token(window)
                frame = _of_window(store, window, remaining, spec)
                if len(frame):
                    frames.append(frame)
                    windows.append(LabelledWindow(window.key, len(frame), *tokens))
    # An empty frame would decide the types of all: it is there for when nothing else is.
    nothing = _joined(as_columns([], CAPTURE_FIELDS), labels_frame([]), "", spec)
    return pd.concat(frames or [nothing], ignore_index=True), windows


def _of_window(store: CaptureStore, window: Window, maximum: int, spec: DataSpec) -> "pd.DataFrame":
    """The labelled captures of a window, the `maximum` labelled last at most."""
    import pandas as pd

    labels = store.read_labels(window).sort_values("labelled_at", kind="stable").tail(maximum)
    if labels.empty:
        return labels
    # Piece by piece: a window may hold far more captures than labels.
    pieces = [_joined(piece, labels, window.key, spec) for piece in store.stream_columns(window)]
    return pd.concat(pieces, ignore_index=True)


def _joined(
    captures: "Columns", labels: "pd.DataFrame", window: str, spec: DataSpec
) -> "pd.DataFrame":
    from mlschool_dagster.monitoring.snapshot import captures_table

    frame: pd.DataFrame = captures_table(captures, spec).to_pandas()
    joined = frame.merge(labels, on="event_id")
    return joined.rename(columns={"label": spec.target.name}).assign(window=window)


def _truth_check(result: "TrainingData") -> dg.AssetCheckResult:
    from mlschool_dagster.modeling.training_data import TruthStatus

    witnesses = [source.name for source in result.sources if source.trusted and source.contradicts]
    distrusted = [source.name for source in result.sources if not source.trusted]
    aside = f" Labels of {', '.join(distrusted)} are left out: not trusted." if distrusted else ""
    descriptions = {
        TruthStatus.HOLDS: "No trusted source of labels contradicts the base data beyond mistakes.",
        TruthStatus.CHANGED: f"The truth has changed, say {', '.join(witnesses)}: neither the "
        "base data nor labels from before are trained on.",
        TruthStatus.DOUBTFUL: f"Labels of {', '.join(witnesses)} contradict the base data and "
        "no second source confirms them: either the truth has changed or they are wrong; have a "
        "second source label the same hours, or verify them and set accept_new_truth.",
    }
    return dg.AssetCheckResult(
        check_name="ground_truth",
        passed=result.truth is not TruthStatus.DOUBTFUL,
        description=descriptions[result.truth] + aside,
        metadata={"sources": table(asdict(source) for source in result.sources)},
    )


def _summary(
    result: "TrainingData", windows: Sequence[LabelledWindow], spec: DataSpec
) -> dict[str, Any]:
    training = result.training
    return {
        "dagster/row_count": len(training),
        "base_rows": float(result.base_rows),
        "captured_rows": float(result.captured_rows),
        "held_out_rows": float(len(result.held_out)),
        "replaced_base_rows": float(result.replaced),
        "repeated_captures": float(result.repeated),
        "inputs_recur": result.recurring,
        "breaches": float(result.breaches),
        "distrusted": float(result.distrusted),
        "outdated": float(result.outdated),
        "windows": table(map(asdict, windows)),
        "sources": table(asdict(source) for source in result.sources),
        "classes": table(
            {
                "class": label,
                "rows": int((training[spec.target.name] == label).sum()),
                "held_out": int((result.held_out[spec.target.name] == label).sum()),
            }
            for label in spec.target.classes
        ),
        "preview": table(training.tail(PREVIEW_ROWS).to_dict("records")),
    }


def _lineage(
    result: "TrainingData", windows: Sequence[LabelledWindow], held_out_digest: str
) -> dict[str, str]:
    """The origin of the rows, as tags of the MLflow run and of the version."""
    if not windows:
        return {"training_captures": "none"}
    trusted = [source.name for source in result.sources if source.trusted]
    return {
        "training_captures": f"{result.captured_rows} labelled captures beside {result.base_rows} "
        "rows of the base data",
        "training_windows": f"{windows[-1].window} to {windows[0].window} ({len(windows)} windows)",
        "label_sources": ", ".join(trusted),
        "held_out": f"{len(result.held_out)} labelled captures, sha256 {held_out_digest}",
    }
