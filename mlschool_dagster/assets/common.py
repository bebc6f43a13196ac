"""What all assets share: plain errors, pictures, tables, and looking up what was materialized."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo

from mlschool_dagster.errors import UserError

OWNERS = ["team:mlops"]

NETWORK_RETRIES = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""For steps that talk to a server. A `UserError` is never retried: somebody must act first."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let a `UserError` fail the step with its sentence alone, without traceback or retry.

    Dagster prints the stack of whatever a step raises, `dagster.Failure` included, except for an
    error that another process has already told: that one it shows as it was told.
    """
    try:
        yield
    except UserError as error:
        told = SerializableErrorInfo(f"{error}\n", [], "UserError")
        raise DagsterUserCodeProcessError(
            str(error), user_code_process_error_infos=[told]
        ) from None


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG shown in place in Dagster's UI."""
    encoded = base64.b64encode(png).decode()
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{encoded})")


def table(rows: Iterable[Mapping[str, Any]]) -> dg.MetadataValue:
    """Rows of plain values as a table; values that a table cannot hold are shown as text."""
    records = [
        dg.TableRecord({str(key): _cell(value) for key, value in row.items()}) for row in rows
    ]
    if not records:
        return dg.MetadataValue.text("no rows")
    return dg.MetadataValue.table(records)


def _cell(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, float):
        return None if value != value else round(value, 6)
    return str(value)


def last_materialization(
    context: dg.AssetExecutionContext, key: str
) -> dg.AssetMaterialization | None:
    """The materialization of asset `key` in this run, else its newest one."""
    result = context.instance.fetch_materializations(dg.AssetKey(key), limit=20)
    for record in result.records:
        if record.run_id == context.run_id:
            return record.asset_materialization
    return result.records[0].asset_materialization if result.records else None


def metadata_of(context: dg.AssetExecutionContext, key: str, *names: str) -> tuple[Any, ...]:
    """Metadata values `names` of the last materialization of asset `key`.

    Raises:
        UserError: the asset has not been materialized.
    """
    materialization = last_materialization(context, key)
    if materialization is None:
        raise UserError(f"{key} has not been materialized yet; materialize it first.")
    return tuple(materialization.metadata[name].value for name in names)
