"""Asset keys, in the order of the lineage."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec

TRAINING_DATA = dg.AssetKey("training_data")
CROSS_VALIDATION = dg.AssetKey("cross_validation")
TRAINED_MODEL = dg.AssetKey("trained_model")
REGISTERED_VERSION = dg.AssetKey("registered_version")
CHALLENGER_COMPARISON = dg.AssetKey("challenger_comparison")

ENDPOINT = dg.AssetKey("endpoint")
ENDPOINT_HEALTH = dg.AssetKey("endpoint_health")
DEPLOYMENT_LEDGER = dg.AssetKey("deployment_ledger")
BATCH_PREDICTIONS = dg.AssetKey("batch_predictions")

LIVE_TRAFFIC = dg.AssetKey("live_traffic")
CAPTURE_IMPORT = dg.AssetKey("capture_import")
TRAFFIC_VOLUME = dg.AssetKey("traffic_volume")
CAPTURED_TRAFFIC = dg.AssetKey("captured_traffic")
LABELS = dg.AssetKey("labels")
DATA_QUALITY_REPORT = dg.AssetKey("data_quality_report")
DRIFT_REPORT = dg.AssetKey("drift_report")
PERFORMANCE_REPORT = dg.AssetKey("performance_report")
ACCURACY_ESTIMATES = dg.AssetKey("accuracy_estimates")
DASHBOARD = dg.AssetKey("dashboard")

CANARY_EVIDENCE = dg.AssetKey("canary_evidence")
PROMOTION_LEDGER = dg.AssetKey("promotion_ledger")

REPORTS = (DATA_QUALITY_REPORT, DRIFT_REPORT, PERFORMANCE_REPORT)
"""The reports that a capture must be in to be covered."""


def raw_data_key(spec: DataSpec) -> dg.AssetKey:
    """The key of the raw data that `spec` describes."""
    return dg.AssetKey(f"raw_{spec.name}")
