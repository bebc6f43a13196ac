"""What Dagster, the endpoint and the history know of an episode."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import EPISODE_TAG
from mlschool_dagster.defs.keys import CANARY_EVIDENCE, ENDPOINT_HEALTH
from mlschool_dagster.defs.promotion.actions import ACT_TAG, LOOK
from mlschool_dagster.defs.promotion.promotion_ledger import (
    EPISODE,
    EVIDENCE,
    LANDED,
)
from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.reconciler import RunStatus
from mlschool_dagster.promotion.episode import Episode, Step
from mlschool_dagster.promotion.evidence import Health, PairedEvidence
from mlschool_dagster.promotion.pairing import landed
from mlschool_dagster.promotion.probation import METRICS
from mlschool_dagster.promotion.steps import Act, Served
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import LocalEndpointResource
from mlschool_dagster.resources.history import History

OBSERVATIONS = 500
"""How many looks at the endpoint's health are read: three days of them."""

AGE_BETWEEN_LOOKS = 0.05
"""Part of its age after which a canary may be looked at again: a hundred and fifty times a day."""


@dataclass(frozen=True, slots=True)
class EpisodeWorld:
    """The `World` of one episode, asked anew at each call."""

    episode: Episode
    instance: dg.DagsterInstance
    endpoint: LocalEndpointResource
    history: History
    captures: Captures

    def attempts(self, act: Act) -> Sequence[RunStatus]:
        """The runs that were made for that act, newest first."""
        return [_status(record.dagster_run) for record in self._runs(act)]

    def served(self) -> Served | None:
        """What the endpoint is to serve; None if nothing."""
        deployments = self.endpoint.target().history()
        plan = deployments[-1].plan if deployments else None
        if plan is None or plan.primary is None:
            return None
        newest = deployments[-1]
        return Served(
            primary=plan.primary.version,
            canary=plan.canary.version if plan.canary else "",
            by_us=self._is_ours(newest.by),
            reason=newest.reason,
        )

    def evidence(self) -> PairedEvidence:
        """Champion and challenger on the same requests, as it was last gathered."""
        gathered = self._gathered()
        if gathered is None:
            return PairedEvidence()
        document = gathered[EVIDENCE].value
        confidence = {float(key): count for key, count in document["confidence"].items()}
        return PairedEvidence(**{**document, "confidence": confidence})

    def health(self) -> Health:
        """How the endpoint did since the challenger has its present role.

        The first look in that role tells of the time before it as well, and is left out.
        """
        role = "version" if self.episode.standing.step is Step.PROMOTED else "canary"
        looks = [
            record.asset_observation.metadata
            for record in self.instance.fetch_observations(ENDPOINT_HEALTH, OBSERVATIONS).records
            if record.asset_observation is not None
        ]
        own: list[Any] = [
            look for look in looks if role in look and look[role].value == self.episode.challenger
        ]
        return Health(
            requests=sum(look["requests"].value for look in own[:-1]),
            errors=sum(look["errors"].value for look in own[:-1]),
        )

    def metrics(self) -> Sequence[Metric]:
        """What monitoring measured since the champion was found to be worse."""
        worse_since = min(self.episode.entries[0].details["windows"])
        with self.history.metrics() as metrics:
            return metrics.read(METRICS, since=Window.from_key(worse_since))

    def next_look(self) -> int | None:
        """The number of the run that is to gather evidence now, if there is some and it is time.

        How long ago a run ended is measured by the clock that stamps runs.
        """
        looks = self._runs(LOOK)
        if looks:
            last = looks[0].end_time
            began = self._runs(Act.CANARY)[0].end_time
            if last is None or began is None:
                return None
            if time.time() - last < AGE_BETWEEN_LOOKS * (last - began) or self._is_up_to_date():
                return None
        return len(looks) + 1

    def _is_up_to_date(self) -> bool:
        """Whether nothing has landed since evidence was gathered."""
        gathered, canary = self._gathered(), self.episode.entry(Step.CANARY)
        if gathered is None or canary is None:
            return False
        with self.captures.open() as store:
            return bool(gathered[LANDED].value == landed(store, canary.at, utc_now()))

    def _gathered(self) -> Mapping[str, Any] | None:
        """What the newest look at this episode's canary told, if there was one."""
        records = self.instance.fetch_materializations(CANARY_EVIDENCE, 1).records
        found = records[0].asset_materialization if records else None
        if found is None or found.metadata[EPISODE].value != self.episode.id:
            return None
        return found.metadata

    def _runs(self, act: str) -> Sequence[dg.RunRecord]:
        tags = {EPISODE_TAG: self.episode.id, ACT_TAG: str(act)}
        return self.instance.get_run_records(dg.RunsFilter(tags=tags))

    def _is_ours(self, by: str) -> bool:
        run = self.instance.get_run_by_id(by)
        return run is not None and run.tags.get(EPISODE_TAG) == self.episode.id


def _status(run: dg.DagsterRun) -> RunStatus:
    if run.is_success:
        return RunStatus.SUCCEEDED
    return RunStatus.FAILED if run.is_finished else RunStatus.STARTED
