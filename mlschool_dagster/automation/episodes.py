"""What Dagster, the endpoint and the history know of an episode."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlschool_dagster.assets.common import EPISODE_TAG
from mlschool_dagster.assets.health import NAME as ENDPOINT_HEALTH
from mlschool_dagster.assets.promotions import CANARY_EVIDENCE, EPISODE, EVIDENCE
from mlschool_dagster.automation.acts import ACT_TAG, LOOK
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.following import RunStatus
from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.promotion.episode import Episode, Step
from mlschool_dagster.promotion.evidence import Health, PairedEvidence
from mlschool_dagster.promotion.probation import METRICS
from mlschool_dagster.promotion.steps import Act, Served
from mlschool_dagster.resources.endpoint import LocalEndpoint
from mlschool_dagster.resources.history import History

OBSERVATIONS = 500
"""How many looks at the endpoint's health are read: three days of them."""

AGE_BETWEEN_LOOKS = 0.1
"""Part of its age after which a canary is looked at again: some seventy times in a day."""

SECONDS_BETWEEN_LOOKS = 30.0


@dataclass(frozen=True, slots=True)
class EpisodeWorld:
    """The `World` of one episode, asked anew at each call."""

    episode: Episode
    instance: dg.DagsterInstance
    endpoint: LocalEndpoint
    history: History

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
        records = self.instance.fetch_materializations(dg.AssetKey(CANARY_EVIDENCE), 1).records
        found = records[0].asset_materialization if records else None
        if found is None or found.metadata[EPISODE].value != self.episode.id:
            return PairedEvidence()
        document: Any = found.metadata[EVIDENCE].value
        confidence = {float(key): count for key, count in document["confidence"].items()}
        return PairedEvidence(**{**document, "confidence": confidence})

    def health(self) -> Health:
        """How the endpoint did since the challenger has its present role.

        The first look in that role tells of the time before it as well, and is left out.
        """
        role = "version" if self.episode.standing.step is Step.PROMOTED else "canary"
        looks = [
            record.asset_observation.metadata
            for record in self.instance.fetch_observations(
                dg.AssetKey(ENDPOINT_HEALTH), OBSERVATIONS
            ).records
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
        """The number of the run that is to gather evidence now; None if it is not yet time.

        How long ago a run ended is measured by the clock that stamps runs.
        """
        looks = self._runs(LOOK)
        began = [record.end_time for record in self._runs(Act.CANARY) if record.end_time]
        if not looks:
            return 1
        last = looks[0].end_time
        if last is None or not began:
            return None
        pause = max(SECONDS_BETWEEN_LOOKS, AGE_BETWEEN_LOOKS * (last - began[0]))
        if time.time() - last < pause:
            return None
        return len(looks) + 1

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
