"""Simulation: jobs that stand in for clients and labellers."""

from pathlib import Path

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.simulation.jobs import build_labeling_job, build_traffic_job


def build_definitions(spec: DataSpec, uri: str, log: Path) -> dg.Definitions:
    """The area's definitions: rows are drawn from `uri`, their truth is kept in `log`."""
    return dg.Definitions(jobs=[build_traffic_job(spec, uri, log), build_labeling_job(spec, log)])
