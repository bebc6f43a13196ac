"""Every private name of Dagster that the platform uses, and why.

A release of Dagster may move any of them. The test file beside each name then fails. Names are
imported on first use: some of their modules cost more to import than all of the definitions.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster._core.definitions.run_request import InstigatorType as InstigatorType
    from dagster._core.errors import DagsterUserCodeProcessError as DagsterUserCodeProcessError
    from dagster._core.event_api import EventLogCursor as EventLogCursor
    from dagster._core.events import EngineEventData as EngineEventData
    from dagster._core.events import JobFailureData as JobFailureData
    from dagster._core.instance.ref import compute_logs_directory as compute_logs_directory
    from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
    from dagster._core.launcher import DefaultRunLauncher as DefaultRunLauncher
    from dagster._core.launcher import WorkerStatus as WorkerStatus
    from dagster._core.scheduler.instigation import InstigatorState as InstigatorState
    from dagster._core.scheduler.instigation import InstigatorTick as InstigatorTick
    from dagster._core.scheduler.instigation import TickStatus as TickStatus
    from dagster._core.storage.local_compute_log_manager import (
        LocalComputeLogManager as LocalComputeLogManager,
    )
    from dagster._core.storage.root import LocalArtifactStorage as LocalArtifactStorage
    from dagster._core.storage.sqlite_storage import DagsterSqliteStorage as DagsterSqliteStorage
    from dagster._serdes import ConfigurableClassData as ConfigurableClassData
    from dagster_shared.error import SerializableErrorInfo as SerializableErrorInfo

DAEMON = "dagster._daemon"
"""Module of the daemon: ``python -m`` finds it where the script dagster-daemon is not on the PATH.
Test: local/test_platform.py."""

STORAGES = (
    "dagster._core.storage.event_log.sql_event_log",
    "dagster._core.storage.schedules.sql_schedule_storage",
)
"""Modules through whose ``serialize_value`` all goes that Dagster writes to its databases; there
is no hook before. Test: defs/test_secrets.py."""

WEBSERVER = "dagster_webserver.cli"
CREATE_WEB_APPLICATION = "create_app_from_workspace_process_context"
"""Factory of the webserver command's application, which has no option for middleware.
Test: local/test_webserver.py."""

_SENTENCE = "a step fails with a sentence and no traceback", "defs/test_config.py"
_ALERTS = "alerts read how runs and sensors ended", "defs/alerting/test_failure_sensor.py"
_INSTANCE = "dagster.yaml names classes of the instance", "local/test_environment.py"

PRIVATE = MappingProxyType(
    {
        "DagsterUserCodeProcessError": ("dagster._core.errors", *_SENTENCE),
        "SerializableErrorInfo": ("dagster_shared.error", *_SENTENCE),
        "EventLogCursor": ("dagster._core.event_api", *_ALERTS),
        "EngineEventData": ("dagster._core.events", *_ALERTS),
        "JobFailureData": ("dagster._core.events", *_ALERTS),
        "InstigatorState": ("dagster._core.scheduler.instigation", *_ALERTS),
        "InstigatorTick": ("dagster._core.scheduler.instigation", *_ALERTS),
        "TickStatus": ("dagster._core.scheduler.instigation", *_ALERTS),
        "CheckRunHealthResult": ("dagster._core.launcher", *_INSTANCE),
        "ConfigurableClassData": ("dagster._serdes", *_INSTANCE),
        "DagsterSqliteStorage": ("dagster._core.storage.sqlite_storage", *_INSTANCE),
        "DefaultRunLauncher": ("dagster._core.launcher", *_INSTANCE),
        "LocalArtifactStorage": ("dagster._core.storage.root", *_INSTANCE),
        "LocalComputeLogManager": ("dagster._core.storage.local_compute_log_manager", *_INSTANCE),
        "WorkerStatus": ("dagster._core.launcher", *_INSTANCE),
        "compute_logs_directory": ("dagster._core.instance.ref", *_INSTANCE),
        "InstigatorType": (
            "dagster._core.definitions.run_request",
            "a scenario waits for the sensors to finish",
            "local/test_scenarios.py",
        ),
    }
)
"""Module, reason and test file of each name."""


def __getattr__(name: str) -> Any:
    if name not in PRIVATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PRIVATE[name][0]), name)
