"""A code location that only propagates, as often as the daemon looks at its sensors."""

import dagster as dg

from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.automation import build_automation_sensor


def _propagating() -> dg.Definitions:
    real = build_definitions()
    return dg.Definitions(
        assets=real.assets,
        asset_checks=real.asset_checks,
        sensors=[build_automation_sensor(interval_seconds=1)],
        resources=real.resources,
        executor=real.executor,
    )


definitions = _propagating()
