"""Simulation: jobs that stand in for clients and labellers."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.simulation.jobs import build_labeling_job, build_traffic_job


def build_definitions(spec: DataSpec, uri: str) -> dg.Definitions:
    """The area's definitions: rows are drawn from `uri`."""
    return dg.Definitions(jobs=[build_traffic_job(spec, uri), build_labeling_job(spec)])
