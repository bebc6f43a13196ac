"""Propagation: assets that are rebuilt because what they are made of is newer.

Such an asset has the condition `UPDATED_WITH_DEPENDENCIES`, and its key is in the sensor's target.
Not for events that must not be lost: those have a sensor that reads a store or a ledger.
"""

import dagster as dg

from mlschool_dagster.defs.keys import ACCURACY_ESTIMATES, DASHBOARD, DEPLOYMENT_LEDGER

INTERVAL_SECONDS = 60

UPDATED_WITH_DEPENDENCIES = (
    dg.AutomationCondition.any_deps_updated().since(dg.AutomationCondition.newly_requested())
    & ~dg.AutomationCondition.in_progress()
)
"""One run for all updates since the last request, once no run is under way.

Dagster's own `eager` forgets an update that comes while the asset is being built, as soon as that
is done: the asset would miss it until the next update.
"""

BUILT_AT_FIRST = (
    dg.AutomationCondition.any_deps_updated() | dg.AutomationCondition.initial_evaluation()
).since(dg.AutomationCondition.newly_requested()) & ~dg.AutomationCondition.in_progress()
"""As `UPDATED_WITH_DEPENDENCIES`, and once when the platform is new."""


def build_automation_sensor(
    interval_seconds: int = INTERVAL_SECONDS,
) -> dg.AutomationConditionSensorDefinition:
    """The sensor ``automation_sensor``, which evaluates the conditions."""
    return dg.AutomationConditionSensorDefinition(
        "automation_sensor",
        target=dg.AssetSelection.assets(DASHBOARD, ACCURACY_ESTIMATES, DEPLOYMENT_LEDGER),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=interval_seconds,
        # Runs that monitor go first.
        run_tags={
            "stage": "monitoring",
            "dagster/max_runtime": "300",
            "dagster/priority": "-1",
        },
        description="Rebuilds the dashboard, the accuracy estimates and the deployment ledger when "
        "what they are made of is newer, in one run, one run at a time.",
    )
