"""What is measured, each in a process of its own: ``cases.py CASE ARGUMENTS`` prints JSON.

The process finds its platform through the environment. CPU seconds are its own, of all its threads;
its peak of memory is the kernel's high-water mark since it began.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
from histories import fill_window

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, load_spec
from mlschool_dagster.definitions import build_definitions
from mlschool_dagster.defs.keys import CAPTURED_TRAFFIC, LABELS, REPORTS
from mlschool_dagster.defs.monitoring.arrival_sensors import (
    MONITORED,
    NEW_CAPTURES,
    build_arrival_sensor,
)
from mlschool_dagster.defs.monitoring.windows import (
    CAPTURES_TOKEN,
    LABELS_FILE,
    monitored_window,
    window_snapshot,
)
from mlschool_dagster.modeling.registry import Registry
from mlschool_dagster.settings import Settings

SETTINGS = Settings.from_environment()
SPEC = load_spec(SETTINGS.spec)
SNAPSHOTS = (CAPTURED_TRAFFIC, LABELS)
COVERED = 48
"""Windows that the check of coverage looks at."""
NEW_ROWS = 1000
NEW_WINDOWS = 4
"""The first one also pays for imports, and is not counted."""


class Run:
    """The platform's jobs in this process."""

    def __init__(self) -> None:
        self.definitions = build_definitions()
        self.instance = dg.DagsterInstance.get()

    def job(
        self, name: str, window: Window | None = None, assets: Sequence[dg.AssetKey] = ()
    ) -> dg.ExecuteInProcessResult:
        """Execute the job `name`; it raises what fails."""
        return self.definitions.resolve_job_def(name).execute_in_process(
            instance=self.instance,
            partition_key=window.key if window else None,
            asset_selection=list(assets) or None,
        )

    def statistics(self, window: Window) -> None:
        """What the three reports count and test, without the pages that they draw of it."""
        from mlschool_dagster.modeling.calibration import load_calibration
        from mlschool_dagster.monitoring import confusion, performance, quality
        from mlschool_dagster.monitoring.drift import drift_from
        from mlschool_dagster.monitoring.e_values import CompositeNull
        from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
        from mlschool_dagster.monitoring.thresholds import DriftConfig

        resources = self.definitions.resources
        files = resources["files"]
        seen = monitored_window(window, SPEC, files, resources["mlflow"])
        quality.quality(
            seen.table.chunks(quality.columns_read(SPEC)), seen.reference, SPEC, seen.refusals
        )
        baseline = ReferenceProfile(seen.reference, SPEC)
        summary = baseline.summary(seen.table.chunks([*SPEC.input_names, PREDICTION, CONFIDENCE]))
        drift_from(baseline, summary, DriftConfig())
        CompositeNull(baseline, DriftConfig()).e_values(summary)
        version = seen.subject.model_version
        labels = window_snapshot(files, window, LABELS_FILE)
        performance.performance(
            seen.table.chunks(confusion.columns_read(SPEC)),
            labels.chunks(confusion.LABELS_READ),
            SPEC,
            {version: load_calibration(files.versions / version)},
        )

    def coverage(self) -> None:
        """Evaluate the check ``coverage`` alone."""
        key = dg.AssetCheckKey(dg.AssetKey("captured_traffic"), "coverage")
        job = self.definitions.resolve_implicit_global_asset_job_def()
        subset = job.get_subset(asset_selection=set(), asset_check_selection={key})
        subset.execute_in_process(instance=self.instance)


def train() -> dict[str, Any]:
    """Register a version and let it be the champion, as if it served."""
    Run().job("training_job")
    Registry(SETTINGS.tracking_uri, SPEC.name).promote("1")
    return {}


def fill(window: str, rows: str) -> dict[str, Any]:
    """Fill a window with labelled captures."""
    _fill(Window.from_key(window), int(rows))
    return {}


def statistics(small: str, large: str) -> dict[str, Any]:
    """Write snapshots of a small window and report on it, which imports all, then a large one."""
    run = Run()
    reports = [name for name in MONITORED if name not in SNAPSHOTS]
    run.job("monitoring_job", Window.from_key(small))
    imports = time.process_time()
    snapshots = _cpu(lambda: run.job("monitoring_job", Window.from_key(large), SNAPSHOTS))
    after_snapshots = peak_mb()
    counting = _cpu(lambda: run.statistics(Window.from_key(large)))
    after_counting = peak_mb()
    reporting = _cpu(lambda: run.job("monitoring_job", Window.from_key(large), reports))
    return {
        "first small window": imports,
        "snapshots": snapshots,
        "peak MB after snapshots": after_snapshots,
        "statistics": counting,
        "peak MB after statistics": after_counting,
        "reports": reporting,
        "peak MB": peak_mb(),
    }


def evidently(small: str, large: str) -> dict[str, Any]:
    """Evidently's three presets on the same snapshots, the small window first."""
    from evidently import DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.presets import ClassificationPreset, DataDriftPreset, DataSummaryPreset

    target = SPEC.target.name
    reference = pd.read_parquet(
        Registry(SETTINGS.tracking_uri, SPEC.name).fetch("1", SETTINGS.home / "versions")
        / "reference.parquet"
    )
    columns = [*SPEC.input_names, "prediction", target]
    definition = DataDefinition(
        numerical_columns=[column.name for column in SPEC.numeric],
        categorical_columns=[column.name for column in SPEC.categorical] + ["prediction", target],
        classification=[MulticlassClassification(target=target, prediction_labels="prediction")],
    )

    def presets(window: str) -> None:
        folder = SETTINGS.files / "windows" / Window.from_key(window).folder
        rows = pd.read_parquet(folder / "captured_traffic.parquet")
        truth = pd.read_parquet(folder / "labels.parquet", columns=["event_id", "label"])
        labelled = rows.merge(truth, on="event_id").rename(columns={"label": target})
        current, before = (
            Dataset.from_pandas(frame[columns], data_definition=definition)
            for frame in (labelled, reference)
        )
        for preset in (DataDriftPreset(), DataSummaryPreset(), ClassificationPreset()):
            Report([preset]).run(current, before).dict()

    presets(small)
    imports = time.process_time()
    return {
        "first small window": imports,
        "statistics": _cpu(lambda: presets(large)),
        "peak MB": peak_mb(),
    }


def history() -> dict[str, Any]:
    """New windows on top of what the store holds: ticks, snapshots, reports, and the coverage."""
    run, store = Run(), open_store(SETTINGS.capture_store)
    known = store.newest_windows(COVERED)
    for window in known:
        for report in REPORTS:
            read = {CAPTURES_TOKEN: store.captures_token(window)}
            run.instance.report_runless_asset_event(
                dg.AssetMaterialization(report, metadata=read, partition=window.key)
            )
    sensor = build_arrival_sensor(NEW_CAPTURES)
    read = store.captures_token(known[0])
    cursor = json.dumps({"version": 1, "cursor": read, "pending": []})
    seconds: list[dict[str, float]] = []
    for number in range(NEW_WINDOWS):
        window = Window.of(utc_now() - timedelta(hours=NEW_WINDOWS - number))
        _fill(window, NEW_ROWS)

        def tick(requests: int) -> None:
            nonlocal cursor
            context = dg.build_sensor_context(
                instance=run.instance,
                cursor=cursor,
                resources=run.definitions.resources,
                definitions=run.definitions,
            )
            told = sensor.evaluate_tick(context)
            if len(told.run_requests or ()) != requests:
                sys.exit(f"The sensor requested {told.run_requests} instead of {requests} runs.")
            cursor = str(told.cursor)

        seconds.append(
            {
                "sensor tick": _cpu(lambda: tick(1)),
                "snapshots": _cpu(lambda w=window: run.job("monitoring_job", w, SNAPSHOTS)),
                "reports": _cpu(lambda w=window: run.job("monitoring_job", w)),
                "settling tick": _cpu(lambda: tick(0)),
                "coverage check": _cpu(run.coverage),
            }
        )
    best = {name: min(each[name] for each in seconds[1:]) for name in seconds[0]}
    return {**best, "all": sum(best.values()), "peak MB": peak_mb()}


def label() -> dict[str, Any]:
    """The simulated labeller labels everything; seconds by the clock of each tenth."""
    from mlschool_dagster.simulation.labeller import PROGRESS_EVERY, label_captures

    marks = [time.monotonic()]
    store = open_store(SETTINGS.capture_store)
    found = label_captures(
        store,
        {},
        SPEC,
        progress=lambda _: marks.append(time.monotonic()),
    )
    tenth = max(1, found.labelled // PROGRESS_EVERY // 10)
    return {
        "labelled": found.labelled,
        "seconds": time.monotonic() - marks[0],
        "CPU": time.process_time(),
        "first tenth": marks[tenth] - marks[0],
        "last tenth": marks[-1] - marks[-1 - tenth],
        "peak MB": peak_mb(),
    }


def peak_mb() -> float:
    """The most memory that this process has held, in MB."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return float(line.split()[1]) / 1024


def _fill(window: Window, rows: int) -> None:
    registry = Registry(SETTINGS.tracking_uri, SPEC.name)
    path = Path(SETTINGS.capture_store.removeprefix("sqlite:///"))
    fill_window(path, window, registry.reference("1"), SPEC, rows)


def _cpu(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    logging.disable()
    case = {each.__name__: each for each in (train, fill, statistics, evidently, history, label)}
    print(json.dumps(case[sys.argv[1]](*sys.argv[2:])))
