"""Data: what is trained on, as it was read and as it is chosen."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.data.raw_data import build_raw_data
from mlschool_dagster.defs.data.training_data import build_training_data


def build_definitions(spec: DataSpec, uri: str) -> dg.Definitions:
    """The area's definitions for the data that `spec` describes, read from `uri`."""
    return dg.Definitions(assets=[build_raw_data(spec, uri), build_training_data(spec)])
