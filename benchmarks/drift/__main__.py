"""What drift detection promises, measured: false alarms, power, and alarms over many windows.

A world is the 344 rows of the data set as a population. References of 344 rows and windows are
drawn from it; what differs is done to the windows only. Every share has its 95 % interval (Wilson).
The promises are also held on thirteen data sets of other kinds (``datasets``): five that
scikit-learn brings along, and made ones with heavy tails, zeros, whole numbers, categories, one
column, sixty columns, and columns that hardly vary.
Ours stands beside Evidently's default preset ("any column": at least one of the seven; "dataset":
at least half of them), and beside Alibi Detect's tests of a table with its own correction for their
number, which needs an environment of its own:

    uv venv /tmp/alibi && uv pip install --python /tmp/alibi/bin/python alibi-detect
    ALIBI_PYTHON=/tmp/alibi/bin/python python benchmarks/drift
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import DATA_SETS, DataSet
from worlds import DRIFTS, POPULATION, World, quiet, reference

from mlschool_dagster.dataset.spec import PREDICTION
from mlschool_dagster.monitoring.drift import DriftReport, DriftVerdict, drift_from
from mlschool_dagster.monitoring.e_values import HORIZON, CompositeNull, evidence
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
from mlschool_dagster.monitoring.statistics import wilson_interval
from mlschool_dagster.monitoring.thresholds import DriftConfig
from mlschool_dagster_tests.monitoring.samples import SPEC

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "drift.json"

CONFIG = DriftConfig()
QUIET_ROWS = (50, 200, 1_000, 10_000)
DRIFT_ROWS = (200, 1_000)
PEER_QUIET_ROWS = {"evidently": QUIET_ROWS, "alibi": QUIET_ROWS[:3]}
QUIET_WINDOWS = int(os.environ.get("DRIFT_BENCH_QUIET", "400"))
DRIFT_WINDOWS = int(os.environ.get("DRIFT_BENCH_DRIFT", "100"))
PEER_WINDOWS = int(os.environ.get("DRIFT_BENCH_PEER", "100"))
HISTORIES = int(os.environ.get("DRIFT_BENCH_HISTORIES", "200"))
OTHER_QUIET = int(os.environ.get("DRIFT_BENCH_OTHER_QUIET", "200"))
OTHER_DRIFT = int(os.environ.get("DRIFT_BENCH_OTHER_DRIFT", "20"))
HISTORY_ROWS = 200
MOST_WINDOWS = 30
COLUMNS = [*SPEC.input_names, PREDICTION]

Figures = dict[str, Any]


def share(hits: int, of: int) -> Figures:
    """A share with its 95 % interval."""
    low, high = wilson_interval(hits, of)
    return {"share": hits / of, "low": round(low, 4), "high": round(high, 4), "of": of}


def false_alarms() -> Figures:
    """Quiet windows that are flagged, with one reference and with another for each window."""
    one = ReferenceProfile(POPULATION, SPEC)

    def flagged(rows: int, seed: int, fixed: bool) -> bool:
        baseline = one if fixed else ReferenceProfile(reference(seed), SPEC)
        report = drift_from(baseline, baseline.summary([quiet(rows, seed)]), CONFIG)
        return report.verdict is DriftVerdict.DRIFTED

    return {
        f"{rows} rows, {kind}": share(
            sum(flagged(rows, seed, fixed) for seed in range(QUIET_WINDOWS)), QUIET_WINDOWS
        )
        for rows in QUIET_ROWS
        for kind, fixed in (("one reference", True), ("another reference each", False))
    }


def power(rows: int) -> Figures:
    """Windows of each kind of drift that are flagged, and in which the right column is named."""
    figures: Figures = {}
    for name, (world, column) in DRIFTS.items():
        flagged = named = others = 0
        for seed in range(DRIFT_WINDOWS):
            baseline = ReferenceProfile(reference(seed), SPEC)
            report = drift_from(baseline, baseline.summary([world(rows, seed)]), CONFIG)
            flagged += report.verdict is DriftVerdict.DRIFTED
            named += column in report.drifted_columns
            others += bool({*report.drifted_columns} - {column})
        figures[name] = {
            "flagged": share(flagged, DRIFT_WINDOWS),
            "named": share(named, DRIFT_WINDOWS) if column else None,
            "others named too": share(others, DRIFT_WINDOWS),
        }
    return figures


def other_data_sets() -> Figures:
    """Quiet windows of other data sets that are flagged, and moderate drift that is named.

    Half of the quiet windows have 200 rows and half 1,000, each with another reference. The drift
    is one of 0.25 sd, or of 15 % of the rows of a category, in one column of 1,000 rows.
    """
    figures: Figures = {}
    for name, make in DATA_SETS.items():
        data = make()

        def judged(rows: pd.DataFrame, seed: int, data: DataSet = data) -> DriftReport:
            baseline = ReferenceProfile(data.reference(seed), data.spec)
            return drift_from(baseline, baseline.summary([rows]), CONFIG)

        quiet_windows = (data.window((200, 1_000)[seed % 2], seed) for seed in range(OTHER_QUIET))
        flagged = [judged(rows, seed).verdict for seed, rows in enumerate(quiet_windows)]
        named = [
            column in judged(data.shifted(1_000, seed, column), seed).drifted_columns
            for column in data.drifting()
            for seed in range(OTHER_DRIFT)
        ]
        figures[name] = {
            "quiet windows flagged": share(flagged.count(DriftVerdict.DRIFTED), OTHER_QUIET),
            "0.25 sd named": share(sum(named), len(named)),
        }
    return figures


def windows_until_confirmed() -> Figures:
    """How many windows of 200 rows confirm each kind of drift: median, and share confirmed."""
    figures: Figures = {}
    for name, (world, _) in DRIFTS.items():
        found = []
        for seed in range(DRIFT_WINDOWS // 5):
            baseline = ReferenceProfile(reference(seed), SPEC)
            null, told = CompositeNull(baseline, CONFIG), []
            for window in range(MOST_WINDOWS):
                rows = world(HISTORY_ROWS, 1_000 * seed + window)
                told.append(null.e_values(baseline.summary([rows])))
                if evidence(told, CONFIG.alpha).confirmed:
                    found.append(window + 1)
                    break
        figures[name] = {
            "windows": float(np.median(found)) if found else None,
            "confirmed": len(found) / (DRIFT_WINDOWS // 5),
        }
    return figures


def alarms_over_windows() -> Figures:
    """Histories of 1,000 quiet windows against one reference each, in which drift is confirmed.

    What a window's bets win is the sum over its rows, so that each row is judged once a history.
    """
    alarms = 0
    for seed in range(HISTORIES):
        baseline = ReferenceProfile(reference(seed), SPEC)
        null = CompositeNull(baseline, CONFIG)
        rows = [
            null.logarithms(baseline.summary([POPULATION.iloc[[row]]]))
            for row in range(len(POPULATION))
        ]
        drawn = np.random.default_rng(seed).multinomial(
            HISTORY_ROWS, np.full(len(rows), 1 / len(rows)), size=HORIZON
        )
        wealth = null.wealth(
            {
                name: np.tensordot(drawn, np.stack([row[name] for row in rows]), axes=1)
                for name in rows[0]
            }
        )
        told = [
            {name: float(values[window]) for name, values in wealth.items()}
            for window in range(HORIZON)
        ]
        totals = evidence(told, CONFIG.alpha).totals
        alarms += max(totals) >= evidence(told[:1], CONFIG.alpha).threshold
    return share(alarms, HISTORIES)


def cases(peer: str) -> dict[str, tuple[World, int, str]]:
    """What a peer is asked: quiet windows, and each kind of drift with the column to be named."""
    asked: dict[str, tuple[World, int, str]] = {
        f"no drift, {rows} rows": (quiet, rows, "") for rows in PEER_QUIET_ROWS[peer]
    }
    for rows in DRIFT_ROWS:
        asked |= {
            f"{name}, {rows} rows": (world, rows, column)
            for name, (world, column) in DRIFTS.items()
        }
    return asked


def evidently() -> Figures:
    """Windows that Evidently's default preset flags: in any column, the right one, as a data set.

    Raises:
        RuntimeError: the whole preset says otherwise of the first window of a case.
    """
    from preset import Preset

    preset = Preset(COLUMNS, [column.name for column in SPEC.numeric])

    def judged(world: World, rows: int, column: str) -> Figures:
        drifted = [
            preset.drifted_columns(world(rows, seed), reference(seed))
            for seed in range(PEER_WINDOWS)
        ]
        if len(drifted[0]) != preset.drifted_count_of_report(world(rows, 0), reference(0)):
            raise RuntimeError(f"Evidently's preset judges otherwise than its tests ({column})")
        counts = np.array([len(columns) for columns in drifted])
        return {
            "any column": share(int((counts > 0).sum()), PEER_WINDOWS),
            "named": share(sum(column in found for found in drifted), PEER_WINDOWS)
            if column
            else None,
            "dataset": share(int((counts >= len(COLUMNS) / 2).sum()), PEER_WINDOWS),
        }

    return {name: judged(*case) for name, case in cases("evidently").items()}


def alibi() -> Figures | str:
    """Windows that Alibi Detect flags, or why that is not known."""
    python = os.environ.get("ALIBI_PYTHON", "")
    if not python:
        return "skipped: set ALIBI_PYTHON to a Python that has alibi-detect"
    with tempfile.TemporaryDirectory() as folder:
        known = {column.name: list(column.categories) for column in SPEC.categorical}
        known[PREDICTION] = list(SPEC.target.classes)
        (Path(folder) / "columns.json").write_text(json.dumps(known))
        for name, (world, rows, _) in cases("alibi").items():
            parts = [
                frame[COLUMNS].assign(seed=seed, part=part)
                for seed in range(PEER_WINDOWS)
                for part, frame in (("window", world(rows, seed)), ("reference", reference(seed)))
            ]
            pd.concat(parts).to_csv(Path(folder) / f"{name}.csv", index=False)
        script = Path(__file__).with_name("alibi.py")
        told = subprocess.run(
            [python, str(script), folder], capture_output=True, text=True, check=True
        )
    counts = json.loads(told.stdout.splitlines()[-1])
    return {name: share(count, PEER_WINDOWS) for name, count in counts.items()}


PARTS: dict[str, Callable[[], Any]] = {
    "false alarms": false_alarms,
    "histories of 1,000 quiet windows with any alarm": alarms_over_windows,
    **{f"power at {rows:,} rows": partial(power, rows) for rows in DRIFT_ROWS},
    "windows of 200 rows until confirmed": windows_until_confirmed,
    "other data sets": other_data_sets,
    "alibi-detect, flagged": alibi,
    "evidently, default preset": evidently,
}


def show(title: str, figures: Any) -> None:
    """One part as text."""
    print(f"\n{title}")
    if not isinstance(figures, dict) or "share" in figures:
        print(f"  {figures}")
        return
    for name, value in figures.items():
        print(f"  {name:40} {value}", flush=True)


def main() -> None:
    """Measure every part, or those whose titles are given; keep each as soon as it is known."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for title in sys.argv[1:] or PARTS:
        started = time.process_time()
        results[title] = PARTS[title]()
        show(title, results[title])
        print(f"  ({time.process_time() - started:.0f} CPU s)", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
