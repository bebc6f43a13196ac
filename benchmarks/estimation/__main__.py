"""How right an accuracy is that is estimated before labels arrive, and how honest its interval.

In each world (see ``worlds.py``) fifty models are trained on 344 rows each, and each answers four
windows of 50, 200 or 1,000 rows whose truth is then looked at. Compared are the platform's estimate
(calibrated confidences and the posterior of their calibration), the mean of the raw confidences,
and, where the Python of an environment with NannyML is given, NannyML's CBPE on the same rows.
NannyML's band is its default, three standard errors of the sampling alone. The floor is what nobody
can undercut: the error of who knew the chances of every row, which is that of the coins tossed.
What the estimates miss beyond it is mostly that the model that serves is none of those that the
folds left, and that 344 rows hold few errors.

    python benchmarks/estimation [--peer /path/to/python]
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from worlds import SPEC, WINDOWS, WORLDS, Answered, Trained, trainings

from mlschool_dagster.modeling.calibration import BINS, confidence_bins, fit_calibration
from mlschool_dagster.monitoring.cbpe import expected_correct

RESULTS = Path(__file__).parents[1] / "results" / "estimation.json"

GOALS = {"mean absolute error": 0.03, "interval coverage": 0.9}
"""For the estimates under covariate shift."""

HELD_TO = tuple(name for name in WORLDS if name.startswith("covariate shift"))
"""The worlds that must reach the goals."""

BOOTSTRAPS = 2_000

HERE, RAW, PEER, FLOOR = "platform", "raw confidences", "NannyML CBPE", "floor"

Estimates = dict[str, list[tuple[float, float, float]]]
"""By method, of each window: accuracy, and the bounds of its interval."""


def estimates(trained: Trained) -> Estimates:
    """The platform's; and, without an interval, the raw confidences' and that of the chances."""
    reference = trained.reference
    calibration = fit_calibration(reference.confidence, reference.right).predictive()
    found: Estimates = {HERE: [], RAW: [], FLOOR: []}
    for window in trained.windows:
        bins = confidence_bins(window.confidence)
        counts = np.bincount(bins, minlength=BINS)[None]
        estimate = expected_correct(counts, calibration).estimate(0)
        if estimate is not None:
            found[HERE].append((estimate.accuracy, estimate.low, estimate.high))
        found[RAW].append((float(window.confidence.mean()),) * 3)
        found[FLOOR].append((window.expected,) * 3)
    return found


def peer_estimates(models: Sequence[Trained], python: str) -> Estimates:
    """NannyML's, of the windows of all `models` in order."""
    with tempfile.TemporaryDirectory() as folder:
        for number, trained in enumerate(models):
            _table(trained.reference, 0).to_parquet(Path(folder, f"reference-{number}.parquet"))
            tables = [_table(window, n) for n, window in enumerate(trained.windows)]
            pd.concat(tables).to_parquet(Path(folder, f"windows-{number}.parquet"), index=False)
        script = Path(__file__).with_name("peer.py")
        quiet = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
        subprocess.run([python, str(script), folder], check=True, env=quiet)
        tables = [
            pd.read_parquet(Path(folder, f"peer-{number}.parquet")) for number in range(len(models))
        ]
    rows = pd.concat(tables)[["accuracy", "low", "high"]]
    return {PEER: list(rows.itertuples(index=False, name=None))}


def _table(rows: Answered, number: int) -> pd.DataFrame:
    classes = np.array(SPEC.target.classes, dtype=object)
    table = pd.DataFrame(
        rows.probabilities, columns=[f"probability_{label}" for label in SPEC.target.classes]
    )
    return table.assign(
        prediction=classes[rows.probabilities.argmax(axis=1)],
        truth=classes[rows.truth],
        window=number,
    )


def scores(found: list[tuple[float, float, float]], realised: list[float]) -> dict[str, Any]:
    """How far the estimates were off, and how often their interval held what came true.

    The mean absolute error has a 95 % interval, by a bootstrap over trainings.
    """
    accuracy, low, high = np.array(found).T
    truth = np.array(realised)
    errors = np.abs(accuracy - truth)
    by_training = errors.reshape(-1, WINDOWS).mean(axis=1)
    drawn = np.random.default_rng(0).choice(by_training, (BOOTSTRAPS, by_training.size))
    figures: dict[str, Any] = {
        "mean absolute error": float(errors.mean()),
        "its interval": np.quantile(drawn.mean(axis=1), [0.025, 0.975]).round(4).tolist(),
        "bias": float((accuracy - truth).mean()),
    }
    if (low < high).any():
        figures |= {
            "interval coverage": float(((low <= truth) & (truth <= high)).mean()),
            "interval width": float((high - low).mean()),
        }
    return figures


def _by_size(
    models: Sequence[Trained], found: list[tuple[float, float, float]], realised: list[float]
) -> dict[str, dict[str, Any]]:
    sizes = np.array([window.truth.size for trained in models for window in trained.windows])
    return {
        str(size): scores(
            [value for value, rows in zip(found, sizes, strict=True) if rows == size],
            [value for value, rows in zip(realised, sizes, strict=True) if rows == size],
        )
        for size in np.unique(sizes)
    }


def measure(peer: str | None) -> dict[str, Any]:
    """The scores of every method in every world."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, world in WORLDS.items():
            models = list(trainings(world, Path(cache)))
            realised = [float(w.right.mean()) for trained in models for w in trained.windows]
            found: Estimates = {HERE: [], RAW: [], FLOOR: []}
            for trained in models:
                for method, values in estimates(trained).items():
                    found[method] += values
            if peer:
                found |= peer_estimates(models, peer)
            errors = [int((~trained.reference.right).sum()) for trained in models]
            results[name] = {
                "windows": len(realised),
                "realised accuracy, mean": float(np.mean(realised)),
                "realised accuracy, least": float(np.min(realised)),
                "errors among out-of-fold rows, mean": float(np.mean(errors)),
                **{method: scores(values, realised) for method, values in found.items()},
                **{
                    f"{method}, by rows of a window": _by_size(models, found[method], realised)
                    for method in (HERE, FLOOR)
                },
            }
            print(name, json.dumps(results[name], indent=2))
    return results


def main() -> None:
    """Measure, print, and write it as JSON; fails if a goal is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--peer", help="Python of an environment with NannyML")
    results = measure(arguments.parse_args().peer)
    missed = [
        name
        for name in HELD_TO
        if results[name][HERE]["mean absolute error"] >= GOALS["mean absolute error"]
        or results[name][HERE]["interval coverage"] < GOALS["interval coverage"]
    ]
    document = {"goals": GOALS, "missed": missed, "worlds": results}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if missed:
        raise SystemExit(f"goals missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
