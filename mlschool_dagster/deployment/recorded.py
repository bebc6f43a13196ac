"""Deploying, observing and removing an endpoint, each recorded in the deployment ledger.

A *wanted* entry is written before anything is touched, and another one when the result is known.
A process that dies in between leaves a *wanted* entry; the next deployment or observation reads
the serving plan from the endpoint and completes the ledger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment.endpoint import (
    Endpoint,
    EndpointStatus,
    Progress,
    State,
    Verify,
    VersionFiles,
    accept,
    ignore,
)
from mlschool_dagster.deployment.ledger import (
    DeploymentEntry,
    DeploymentEvent,
    DeploymentLedger,
    serving_plan,
)
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.errors import UserError


@dataclass(frozen=True, slots=True)
class RecordedEndpoint:
    """An `endpoint` all of whose changes are kept in `ledger`."""

    endpoint: Endpoint
    ledger: DeploymentLedger

    def deploy(
        self,
        plan: Plan,
        files: Mapping[str, VersionFiles],
        *,
        by: str,
        reason: str,
        verify: Verify = accept,
        progress: Progress = ignore,
    ) -> EndpointStatus:
        """Deploy `plan` as `Endpoint.deploy` does, for `by` (a run's id) because of `reason`.

        Raises:
            UserError: as `Endpoint.deploy`, or the ledger cannot be used.
        """
        self.endpoint.capabilities.require(plan)
        self.observe()
        requested = self.ledger.append(DeploymentEntry(DeploymentEvent.WANTED, plan, by, reason))
        try:
            status = self.endpoint.deploy(plan, files, verify=verify, progress=progress)
        except BaseException as error:
            self._record_failure(by, error)
            raise
        self.ledger.append(
            DeploymentEntry(DeploymentEvent.SERVING, plan, by, reason, _began(status, requested.at))
        )
        return status

    def teardown(self, *, by: str, reason: str, progress: Progress = ignore) -> None:
        """Remove the endpoint, for `by` because of `reason`.

        Raises:
            UserError: something cannot be removed, or the ledger cannot be used.
        """
        self.endpoint.teardown(progress)
        if serving_plan(self.ledger.entries()) is not None:
            self.ledger.append(DeploymentEntry(DeploymentEvent.REMOVED, None, by, reason))

    def observe(self) -> tuple[EndpointStatus, str]:
        """The status, and in a sentence how it differs from the ledger, empty if it does not.

        What a dead process did not record is recorded now. What serves without having been
        deployed through the platform becomes an entry *observed*. An endpoint that does not answer
        is no change of what should serve, and one that is changing is judged when it has settled.

        Raises:
            UserError: the service or the ledger cannot be reached.
        """
        status = self.endpoint.status()
        entries = self.ledger.entries()
        recorded, serving = serving_plan(entries), status.serving
        # One that does not answer, but for one that was deleted, may serve again any time.
        is_unknown = serving is None and status.state is not State.ABSENT
        if status.is_changing or is_unknown or serving == recorded:
            return status, ""
        last = entries[-1] if entries else None
        if last is not None and last.event is DeploymentEvent.WANTED and last.plan == serving:
            at = _began(status, last.at)
            self.ledger.append(
                DeploymentEntry(DeploymentEvent.SERVING, serving, last.by, last.reason, at)
            )
            return status, ""
        difference = (
            f"The endpoint serves {_words(serving)}, where the deployment ledger has "
            f"{_words(recorded)}: "
            "somebody changed it without the platform."
        )
        self.ledger.append(DeploymentEntry(DeploymentEvent.OBSERVED, serving, "", difference))
        return status, difference

    def _record_failure(self, by: str, error: BaseException) -> None:
        """Record what serves after a deployment that ended with `error`."""
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        try:
            serving = self.endpoint.status().serving
        except UserError:
            # The service cannot be reached: the next observation completes the ledger.
            return
        event = DeploymentEvent.FAILED if serving is None else DeploymentEvent.TAKEN_BACK
        self.ledger.append(DeploymentEntry(event, serving, by, f"{event.capitalize()}: {words}"))


def _began(status: EndpointStatus, requested_at: datetime) -> datetime:
    """When a plan requested at `requested_at` began to serve, as exactly as is known."""
    if status.since is not None and status.since >= requested_at:
        return status.since
    return utc_now()


def _words(plan: Plan | None) -> str:
    """The versions of `plan` in words."""
    if plan is None:
        return "nothing"
    beside = [
        f"{version} as its {role} ({share:g})"
        for role, version, share in (
            ("canary", plan.canary, plan.canary_share),
            ("shadow", plan.shadow, plan.shadow_share),
        )
        if version is not None
    ]
    sampled = "" if plan.sampling_share == 1.0 else f", {plan.sampling_share:g} of it captured"
    return f"version {plan.primary}{''.join(f' with version {each}' for each in beside)}{sampled}"
