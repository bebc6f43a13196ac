"""Dagster's exits: what it writes to its databases holds no secret.

Dagster serialises the errors of any code and the metadata of any event as they come; there is no
hook before. So the two functions through which all of it goes are replaced, once a process.
"""

from typing import Any

from dagster._core.storage.event_log import sql_event_log
from dagster._core.storage.schedules import sql_schedule_storage
from dagster_shared.error import SerializableErrorInfo

from mlschool_dagster.credentials import scrub, scrub_logs_and_tracebacks

_SERIALIZE = "serialize_value"


def scrub_exits() -> None:
    """From now on, no log, event, error or tick that this process writes holds a secret."""
    scrub_logs_and_tracebacks()
    for module in (sql_event_log, sql_schedule_storage):
        _replace(module, _SERIALIZE, lambda text: scrub(text))
    _replace(SerializableErrorInfo, "from_traceback", _scrubbed)


def _scrubbed(error: SerializableErrorInfo) -> SerializableErrorInfo:
    return SerializableErrorInfo(
        scrub(error.message),
        [scrub(line) for line in error.stack],
        error.cls_name,
        error.cause,
        error.context,
    )


def _replace(owner: Any, name: str, change: Any) -> None:
    """Let `change` see all that the function `name` of `owner` returns."""
    original = getattr(owner, name)
    if getattr(original, "scrubs", False):
        return

    def changed(*arguments: Any, **options: Any) -> Any:
        return change(original(*arguments, **options))

    changed.scrubs = True  # type: ignore[attr-defined]
    setattr(owner, name, changed)
