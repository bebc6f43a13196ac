"""The stories that can be played."""

from collections.abc import Mapping

from mlschool_dagster.local.scenario_story import Expected, Hour, Story
from mlschool_dagster.monitoring.metrics import MetricName
from mlschool_dagster.simulation.config import Drift

STORIES: Mapping[str, Story] = {
    "sensor_failure": Story(
        tells="An instrument fails: a column comes without values.",
        changed=[Hour(drift=Drift.MISSING, share=1.0)],
        delay=None,
        expected=[Expected(MetricName.QUALITY_FINDINGS, within=1)],
    ),
}
"""By name."""
