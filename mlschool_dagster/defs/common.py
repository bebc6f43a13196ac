"""Helpers that all assets share: plain errors, pictures, tables, metadata of materializations."""

import base64
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ValidationError

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dagster_internals import (
    DagsterUserCodeProcessError,
    SerializableErrorInfo,
)
from mlschool_dagster.errors import UserError, reason
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.storage import Location

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LOG = logging.getLogger(__name__)

OWNERS = ["team:mlops"]

ROLLOUT_TAG = "mlschool/rollout"
"""Tag of a run that belongs to the story of one challenger: the rollout's id."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""The statuses of a run that waits for its turn or works."""

RECORDS = 20
"""Number of newest materializations searched for the one of this run."""

NETWORK_RETRIES = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""For steps that talk to a server. A `UserError` is never retried: somebody must act first."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let a `UserError` fail the step with its sentence alone, without traceback or retry.

    Dagster prints the stack of whatever a step raises, `dagster.Failure` included, except for an
    error that another process has already reported: that one it shows as reported.
    """
    try:
        yield
    except UserError as error:
        reported = SerializableErrorInfo(f"{error}\n", [], "UserError")
        raise DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
            str(error), user_code_process_error_infos=[reported]
        ) from None


class PlainConfig(dg.Config):
    """Configuration of an op whose invalid values are reported in one sentence, no traceback."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = "; ".join(map(_fault_text, error.errors(include_url=False)))
            with plain_errors():
                raise UserError(f"In the run's configuration, {faults}.") from None


def _fault_text(fault: "ErrorDetails") -> str:
    """One validation error of pydantic, as in ``epochs is 0: it should be greater than 0``."""
    entry = ".".join(map(str, fault["loc"]))
    requirement = fault["msg"].replace("Input should", "it should").removeprefix("Value error, ")
    return f"{entry} is {fault['input']!r}: {requirement.rstrip('.')}"


def picture(draw: Callable[[], bytes], alt: str) -> dg.MetadataValue:
    """The PNG that `draw` makes, which Dagster's UI shows on a click, without any file beside it.

    If it cannot be drawn, a sentence gives the reason: no result of an asset depends on it.
    """
    try:
        encoded = base64.b64encode(draw()).decode()
    except Exception as error:
        return dg.MetadataValue.text(not_drawn(f"The picture ({alt})", error))
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{encoded})")


def page(
    files: PlatformFiles, place: Location, write: Callable[[Path], str]
) -> dict[str, dg.MetadataValue]:
    """Metadata that links the HTML page at `place`, which `write` writes into a local file.

    `write` returns what it could not draw, or nothing. Where the page cannot be written at all, a
    sentence says why in place of the link.
    """
    try:
        with place.writing() as path:
            lacking = write(path)
    except Exception as error:
        return {"report": dg.MetadataValue.text(not_drawn(f"The page {place.name}", error))}
    metadata: dict[str, dg.MetadataValue] = {"report": files.link(place)}
    if lacking:
        metadata["not_drawn"] = dg.MetadataValue.text(lacking)
    return metadata


def not_drawn(what: str, error: Exception) -> str:
    """The sentence in place of a picture; the traceback goes to the log."""
    _LOG.warning("%s could not be drawn", what, exc_info=error)
    return f"{what} could not be drawn ({reason(error)}); the numbers do not depend on it."


def table(rows: Iterable[Mapping[Any, Any]]) -> dg.MetadataValue:
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
        # JSON has no other numbers.
        return round(value, 6) if math.isfinite(value) else None if value != value else str(value)
    return str(value)


def metadata_of(
    context: dg.AssetExecutionContext, key: dg.AssetKey, *names: str
) -> tuple[Any, ...]:
    """Metadata values `names` of what this run made of asset `key`, else of its newest state.

    Raises:
        UserError: the asset has not been materialized.
    """
    records = context.instance.fetch_materializations(key, limit=RECORDS).records
    if not records:
        name = key.to_user_string()
        raise UserError(f"{name} has not been materialized yet; materialize it first.")
    own = [record for record in records if record.run_id == context.run_id]
    materialization = (own or records)[0].asset_materialization
    metadata = materialization.metadata if materialization else {}
    return tuple(metadata[name].value for name in names)


UNDECIDED = "undecided"
"""Metadata of a check without enough data for a verdict; absent from all others."""


def undecided(is_undecided: bool) -> dict[str, bool]:
    """Metadata that marks a check as undecided; empty if it is decided."""
    return {UNDECIDED: True} if is_undecided else {}


def of_window(window: Window, verdict: str) -> str:
    """A `verdict` that names its window: windows are monitored in any order, and again."""
    return f"{window.key}: {verdict}"


def outcomes(results: Iterable[dg.AssetCheckResult]) -> dict[str, bool | None]:
    """Whether each check passed, by name; None where it is undecided."""
    return {
        str(result.check_name): None if UNDECIDED in (result.metadata or {}) else result.passed
        for result in results
    }
