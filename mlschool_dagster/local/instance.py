"""Dagster's instance on one machine, as `dagster.yaml` names its parts.

Belongs here: where a plain `dagster` command keeps its state, which is where `make` keeps it, and
how a dead run is recognised. Does not belong here: anything that an instance of several machines
could use.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from dagster import DagsterEventType, DagsterRun, EventLogEntry

from mlschool_dagster.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClassData,
    DagsterSqliteStorage,
    DefaultRunLauncher,
    EngineEventData,
    LocalArtifactStorage,
    LocalComputeLogManager,
    WorkerStatus,
    compute_logs_directory,
)
from mlschool_dagster.settings import Settings


class LocalRunLauncher(DefaultRunLauncher):
    """Starts runs as Dagster does by default, and knows whether the process of one still lives.

    A code server that dies takes the knowledge of its runs with it: nobody else would notice that
    a run has died beside it until the longest time that a run may take is over.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """The daemon may ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether one of the processes that worked on the run lives, or none is known."""
        events = self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        processes = {pid for event in events for pid in _processes(event)}
        if not processes or any(map(_lives, processes)):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process has died")


class HomeStorage(DagsterSqliteStorage):
    """Runs, events and schedules in the state folder."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings of its own."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "HomeStorage":
        """The storage of the state folder that the environment names."""
        return cls.from_local(str(_folder()), inst_data)


class HomeArtifacts(LocalArtifactStorage):
    """Dagster's files in the state folder."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings of its own."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "HomeArtifacts":
        """The files of the state folder that the environment names."""
        return cls(str(_folder()), inst_data)


class HomeComputeLogs(LocalComputeLogManager):
    """What runs print, in the state folder."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings of its own."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "HomeComputeLogs":
        """The logs of the state folder that the environment names."""
        return cls(compute_logs_directory(str(_folder())), inst_data=inst_data)


def _folder() -> Path:
    return Settings.from_environment().dagster_home


def _processes(event: EventLogEntry) -> Iterator[int]:
    """The process that an event says works on its run, if it says so."""
    data = event.get_dagster_event().event_specific_data
    pid = data.metadata.get("pid") if isinstance(data, EngineEventData) else None
    if pid is not None:
        yield int(str(pid.value))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
