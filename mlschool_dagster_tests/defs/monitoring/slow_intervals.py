"""A code location that only follows the store: real assets, and sensors with their own patience."""

from mlschool_dagster.defs.monitoring.arrival_sensors import FOLLOWING
from mlschool_dagster_tests.defs.monitoring.fast_intervals import monitoring_definitions

definitions = monitoring_definitions(FOLLOWING)
