"""Monitoring: hourly windows of captured traffic, their labels and reports, and the dashboard."""

from dataclasses import replace
from datetime import timedelta

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.monitoring.accuracy_estimates import accuracy_estimates
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    FOLLOWING,
    NEW_CAPTURES,
    NEW_LABELS,
    build_arrival_sensor,
    monitoring_job,
)
from mlschool_dagster.defs.monitoring.capture_import import (
    build_capture_import_sensor,
    capture_import,
    capture_import_job,
)
from mlschool_dagster.defs.monitoring.captures import (
    build_captured_traffic,
    build_labels,
    build_live_traffic,
    coverage,
)
from mlschool_dagster.defs.monitoring.dashboard import (
    build_dashboard,
    dashboard_job,
)
from mlschool_dagster.defs.monitoring.data_quality_report import build_data_quality_report
from mlschool_dagster.defs.monitoring.drift_report import build_drift_report
from mlschool_dagster.defs.monitoring.performance_report import build_performance_report
from mlschool_dagster.defs.monitoring.traffic_volume import (
    traffic_volume,
    traffic_volume_sensor,
    volume_job,
)
from mlschool_dagster.defs.monitoring.windows import partitions


def build_definitions(
    spec: DataSpec,
    first: Window,
    rest: timedelta,
    import_interval: timedelta,
    imports: bool,
) -> dg.Definitions:
    """The area's definitions for windows from `first` on.

    Args:
        spec: the data that is captured.
        first: the oldest window.
        rest: the time between two monitoring runs of a window that is not over.
        import_interval: the time between two checks for importable objects.
        imports: whether there is a place to import from.
    """
    windows = partitions(first)
    following = replace(FOLLOWING, rest=rest)
    return dg.Definitions(
        assets=[
            build_live_traffic(spec),
            capture_import,
            traffic_volume,
            build_captured_traffic(spec, windows),
            build_labels(spec, windows),
            build_data_quality_report(spec, windows),
            build_drift_report(spec, windows),
            build_performance_report(spec, windows),
            accuracy_estimates,
            build_dashboard(spec),
        ],
        asset_checks=[coverage],
        jobs=[capture_import_job, monitoring_job, volume_job, dashboard_job],
        sensors=[
            build_capture_import_sensor(import_interval, imports),
            build_arrival_sensor(NEW_CAPTURES, following),
            build_arrival_sensor(NEW_LABELS, following),
            traffic_volume_sensor,
        ],
    )
