"""The ledger: every change of what serves, and which version served when."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.automation import UPDATED_WITH_DEPENDENCIES
from mlschool_dagster.defs.common import OWNERS, plain_errors, table
from mlschool_dagster.defs.keys import DEPLOYMENT_LEDGER, ENDPOINT
from mlschool_dagster.defs.serving.endpoint import GROUP
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.deployment.ledger import Change, Term

RUN_ID_SHOWN = 8
"""Characters of a run id by which Dagster itself shows runs."""


@dg.asset(
    key=DEPLOYMENT_LEDGER,
    automation_condition=UPDATED_WITH_DEPENDENCIES,
    deps=[ENDPOINT],
    group_name=GROUP,
    kinds={"table", "python"},
    owners=OWNERS,
    code_version="1",
)
def deployment_ledger(
    context: dg.AssetExecutionContext, endpoint: EndpointResource, history: History
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every change of what the endpoint serves: when, by which run, what, from, to and why.

    Also for how long each version was the primary. Newest first, times in UTC.
    """
    from mlschool_dagster.deployment.ledger import Action, changes, terms

    with plain_errors():
        entries = history.deployment_entries(endpoint.name)
    made, served = changes(entries), terms(entries)
    rolled_back = sum(change.action is Action.ROLLED_BACK for change in made)
    context.log.info(f"{len(made)} changes, {len(served)} terms of a primary")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(made),
            "changes": _changes_table(made),
            "served": _terms_table(served, utc_now()),
            "versions_served": float(len({term.version for term in served})),
            "rolled_back": float(rolled_back),
        }
    )


def _changes_table(made: "Sequence[Change]") -> dg.MetadataValue:
    return table(
        {
            "when": _shown(change.at),
            "action": change.action.value,
            "role": change.role.value,
            "from": change.before or "",
            "to": change.after or "",
            "share": change.share,
            "why": change.reason,
            "who": change.by[:RUN_ID_SHOWN],
        }
        for change in reversed(made)
    )


def _terms_table(served: "Sequence[Term]", now: datetime) -> dg.MetadataValue:
    return table(
        {
            "version": term.version,
            "since": _shown(term.since),
            "until": _shown(term.until) if term.until else "now",
            "hours": term.length(now) / timedelta(hours=1),
        }
        for term in reversed(served)
    )


def _shown(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S")
