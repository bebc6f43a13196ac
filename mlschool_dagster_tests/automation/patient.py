"""A code location that only follows the store: real assets, and sensors with their own patience."""

from mlschool_dagster.automation.sensors import FOLLOWING
from mlschool_dagster_tests.automation.impatient import following_definitions

definitions = following_definitions(FOLLOWING)
