"""Alerting: one sensor that notifies people of what fails and when it works again."""

import dagster as dg

from mlschool_dagster.defs.alerting.failure_sensor import failure_sensor

definitions = dg.Definitions(sensors=[failure_sensor])
