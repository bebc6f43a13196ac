"""Context of a rollout: its runs, the endpoint's state, the evidence and the metrics."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import ROLLOUT_TAG
from mlschool_dagster.defs.keys import CANARY_EVIDENCE, ENDPOINT_HEALTH
from mlschool_dagster.defs.promotion.actions import ACTION_TAG, EVIDENCE_ACTION
from mlschool_dagster.defs.promotion.promotion_ledger import (
    AS_OF,
    EVIDENCE,
    ROLLOUT,
)
from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.reconciler import RunStatus
from mlschool_dagster.promotion.decisions import RolloutAction, ServingState
from mlschool_dagster.promotion.evidence import EndpointHealth, PairedEvidence
from mlschool_dagster.promotion.rollout import Rollout, Step
from mlschool_dagster.promotion.soak import METRICS
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History

OBSERVATIONS = 500
"""Newest observations of the endpoint's health that are read: three days of them."""

PAUSE_SHARE = 0.05
"""Pause between two evidence runs, as a share of the canary's age: at most 150 runs a day."""


@dataclass(frozen=True, slots=True)
class DagsterRolloutContext:
    """The `RolloutContext` of one rollout; each method reads the present state."""

    rollout: Rollout
    instance: dg.DagsterInstance
    endpoint: EndpointResource
    history: History
    captures: Captures

    def attempts(self, action: RolloutAction) -> Sequence[RunStatus]:
        """The runs for that action, newest first."""
        return [_status(record.dagster_run) for record in self._runs(action)]

    def serving_state(self) -> ServingState | None:
        """Versions served according to the deployment ledger; None if nothing is."""
        from mlschool_dagster.deployment.ledger import served_entries

        newest = served_entries(self.history.deployment_entries(self.endpoint.name))[-1:]
        if not newest or newest[0].plan is None:
            return None
        plan = newest[0].plan
        return ServingState(
            primary=plan.primary,
            canary=plan.canary or "",
            by_us=self._is_ours(newest[0].by),
            reason=newest[0].reason,
        )

    def evidence(self) -> PairedEvidence:
        """Champion and challenger on the same requests, by the newest evidence run."""
        gathered = self._newest_evidence()
        if gathered is None:
            return PairedEvidence()
        document = gathered[EVIDENCE].value
        confidence = {float(key): count for key, count in document["confidence"].items()}
        return PairedEvidence(**{**document, "confidence": confidence})

    def health(self) -> EndpointHealth:
        """Requests and errors since the challenger has its present role.

        The first observation in that role also covers the time before it, and is left out.
        """
        role = "version" if self.rollout.current.step is Step.PROMOTED else "canary"
        observations = [
            record.asset_observation.metadata
            for record in self.instance.fetch_observations(ENDPOINT_HEALTH, OBSERVATIONS).records
            if record.asset_observation is not None
        ]
        own: list[Any] = [
            seen
            for seen in observations
            if role in seen and seen[role].value == self.rollout.challenger
        ]
        return EndpointHealth(
            requests=sum(seen["requests"].value for seen in own[:-1]),
            errors=sum(seen["errors"].value for seen in own[:-1]),
        )

    def metrics(self) -> Sequence[Metric]:
        """The metrics of the windows since the champion's degradation."""
        degraded_since = min(self.rollout.entries[0].details["windows"])
        with self.history.metrics() as metrics:
            return metrics.read(METRICS, since=Window.from_key(degraded_since))

    def next_evidence_run(self) -> int | None:
        """The number of the evidence run that is due now; None if none is.

        Elapsed time is measured by the clock that stamps runs.
        """
        runs = self._runs(EVIDENCE_ACTION)
        if runs:
            last = runs[0].end_time
            began = self._runs(RolloutAction.CANARY)[0].end_time
            if last is None or began is None:
                return None
            if time.time() - last < PAUSE_SHARE * (last - began) or self._is_up_to_date():
                return None
        return len(runs) + 1

    def _is_up_to_date(self) -> bool:
        """Whether nothing has arrived since the newest evidence run."""
        from mlschool_dagster.promotion.paired_evaluation import replay_token

        gathered, canary = self._newest_evidence(), self.rollout.entry(Step.CANARY)
        if gathered is None or canary is None:
            return False
        with self.captures.open() as store:
            return bool(gathered[AS_OF].value == replay_token(store, canary.at, utc_now()))

    def _newest_evidence(self) -> Mapping[str, Any] | None:
        """Metadata of the newest evidence run of this rollout, if there is one."""
        records = self.instance.fetch_materializations(CANARY_EVIDENCE, 1).records
        newest = records[0].asset_materialization if records else None
        if newest is None or newest.metadata[ROLLOUT].value != self.rollout.id:
            return None
        return newest.metadata

    def _runs(self, action: str) -> Sequence[dg.RunRecord]:
        tags = {ROLLOUT_TAG: self.rollout.id, ACTION_TAG: str(action)}
        return self.instance.get_run_records(dg.RunsFilter(tags=tags))

    def _is_ours(self, by: str) -> bool:
        run = self.instance.get_run_by_id(by)
        return run is not None and run.tags.get(ROLLOUT_TAG) == self.rollout.id


def _status(run: dg.DagsterRun) -> RunStatus:
    if run.is_success:
        return RunStatus.SUCCEEDED
    return RunStatus.FAILED if run.is_finished else RunStatus.STARTED
