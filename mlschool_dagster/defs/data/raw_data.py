"""Raw data: what is trained on, as it was read, and the contract that it keeps."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import CategoricalColumn, Column, DataSpec
from mlschool_dagster.defs.common import OWNERS, PlainConfig, picture, plain_errors, table
from mlschool_dagster.defs.data.datasets import write_dataset
from mlschool_dagster.defs.keys import raw_data_key
from mlschool_dagster.errors import UserError, listed
from mlschool_dagster.resources.files import PlatformFiles

if TYPE_CHECKING:
    import pandas as pd

GROUP = "data"
PREVIEW_ROWS = 8


def build_raw_data(spec: DataSpec, default_uri: str) -> dg.AssetsDefinition:
    """The asset of the data that `spec` describes, read from `default_uri` unless configured."""
    key = raw_data_key(spec)

    class RawDataConfig(PlainConfig):
        """Source of the raw data."""

        uri: str = Field(
            default=default_uri,
            description="A CSV or Parquet file, or a folder of them, as a path or URI (file://, "
            "s3://, abfs://).",
        )

    @dg.asset(
        key=key,
        group_name=GROUP,
        kinds={"csv", "pandas"},
        owners=OWNERS,
        code_version="1",
        output_required=False,
        check_specs=[
            dg.AssetCheckSpec(
                "contract",
                asset=key,
                blocking=True,
                description="Columns, types, ranges, categories, missing share, duplicates and "
                "row count are as the data spec says; otherwise nothing is written and nothing "
                "downstream runs.",
            )
        ],
        description=f"{spec.description} As read from its source, and only if it keeps the "
        "contract; its data version is the hash of its content.",
        metadata={
            "dagster/column_schema": dg.TableSchema(columns=_column_schema(spec)),
            "dagster/uri": default_uri,
        },
    )
    def raw(
        context: dg.AssetExecutionContext, config: RawDataConfig, files: PlatformFiles
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:  # type: ignore[type-arg]
        from mlschool_dagster.dataset.contract import violations
        from mlschool_dagster.dataset.tables import read_data

        with plain_errors():
            try:
                frame = read_data(config.uri, spec)
            except UserError as error:
                yield dg.AssetCheckResult(
                    check_name="contract", passed=False, description=str(error)
                )
                raise
            broken = violations(frame, spec)
            yield dg.AssetCheckResult(
                check_name="contract",
                passed=not broken,
                description=" ".join(broken) or f"{len(frame)} rows keep the contract.",
                metadata={"violations": table({"violation": text} for text in broken)},
            )
            if broken:
                raise UserError(
                    f"{config.uri} breaks the data contract: {' '.join(broken)} "
                    "Mend the data, or the data spec."
                )
            digest, place = write_dataset(files, key.to_user_string(), frame)
            context.log.info(f"{len(frame)} rows from {config.uri}")
            yield dg.MaterializeResult(
                data_version=dg.DataVersion(digest),
                metadata={
                    **_summary(frame, spec),
                    "digest": digest,
                    "source": config.uri,
                    "path": dg.MetadataValue.path(place.uri),
                },
            )

    return raw


def _summary(frame: "pd.DataFrame", spec: DataSpec) -> dict[str, dg.MetadataValue | int | float]:
    from mlschool_dagster.modeling.plots import class_balance, distributions

    inputs = frame[spec.input_names]
    balance = frame[spec.target.name].value_counts()
    return {
        "dagster/row_count": len(frame),
        "missing_share": float(inputs.isna().to_numpy().mean()),
        "preview": table(frame.head(PREVIEW_ROWS).to_dict("records")),
        "classes": table({"class": str(k), "rows": int(v)} for k, v in balance.items()),
        "class_balance": picture(lambda: class_balance(frame, spec), "rows per class"),
        "distributions": picture(lambda: distributions(frame, spec), "numeric columns by class"),
    }


def _column_schema(spec: DataSpec) -> list[dg.TableColumn]:
    target = CategoricalColumn(spec.target.name, "What the model predicts", spec.target.classes)
    return [_table_column(column) for column in (target, *spec.columns)]


def _table_column(column: Column) -> dg.TableColumn:
    if isinstance(column, CategoricalColumn):
        kind, allowed = "string", f"one of {listed(column.categories)}"
    else:
        kind, allowed = "float", f"{column.minimum:g} to {column.maximum:g} {column.unit}"
    return dg.TableColumn(
        column.name,
        kind,
        description=column.description,
        constraints=dg.TableColumnConstraints(nullable=column.nullable, other=[allowed.strip()]),
    )
