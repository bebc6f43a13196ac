"""Maintenance: deletion of what is older than the retention period."""

import dagster as dg

from mlschool_dagster.defs.maintenance.retention import retention_job, weekly_retention

definitions = dg.Definitions(jobs=[retention_job], schedules=[weekly_retention])
