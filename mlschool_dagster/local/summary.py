"""The demonstration's summary: what the loop showed, from the metadata of its assets."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.local.platform import Platform
from mlschool_dagster.settings import Settings
from mlschool_dagster.simulation.labeller import DEFAULT_QUALITY


def summary(
    instance: dg.DagsterInstance,
    settings: Settings,
    platform: Platform,
    window: Window,
    landed: int,
) -> Iterator[str]:
    """The lines of the summary; `landed` captures are new in it, `window` is the newest one."""
    cross_validation = _metadata(instance, "cross_validation")
    version = _metadata(instance, "registered_version")
    endpoint = _metadata(instance, "endpoint")
    drift = _metadata(instance, "drift_report", window)
    performance = _metadata(instance, "performance_report", window)
    columns = ", ".join(drift["drifted_columns"]) or "none"
    served = "champion" if endpoint["version"] == version["version"] else "challenger"
    yield ""
    yield f"accuracy     cross-validated {cross_validation['accuracy_mean']:.4f} ± " + (
        f"{cross_validation['accuracy_std']:.4f} (mean of the folds ± standard deviation)"
    )
    yield f"version      {version['version']}, alias {served}"
    yield f"endpoint     {endpoint['url']}, version {endpoint['version']}, smoke test passed"
    yield f"captures     {landed} new, {drift['rows']} in window {window.key}"
    yield f"drift        {drift['verdict']}: {columns}"
    yield f"accuracy     estimated {performance['estimated_accuracy']:.3f} without labels, " + (
        f"measured {performance['measured_accuracy']:.3f} on {performance['labelled']} labels"
    )
    yield f"             {_guesses(settings)}"
    yield ""
    yield f"Dagster      {platform.dagster_url} (`make dev` opens it, with all of this in it)"
    yield f"MLflow       {platform.mlflow_url}"
    yield f"reports      {settings.files}/windows"
    yield f"logs         {settings.home / 'logs'}"


def _guesses(settings: Settings) -> str:
    """Why simulated labels measure less than the model achieves."""
    quality = DEFAULT_QUALITY
    classes = len(load_spec(settings.spec).target.classes)
    return (
        f"(simulated labellers guess {1 - quality:.0%} of the labels, so that even a model without "
        f"an error would measure about {quality + (1 - quality) / classes:.3f})"
    )


def _metadata(
    instance: dg.DagsterInstance, asset: str, window: Window | None = None
) -> dict[str, Any]:
    filters = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey(asset), asset_partitions=[window.key] if window else None
    )
    record = instance.fetch_materializations(filters, limit=1).records[0]
    materialization = record.asset_materialization
    assert materialization is not None  # noqa: S101 - the filter returns materializations only
    return {name: value.value for name, value in materialization.metadata.items()}
