"""What training costs: ordinary Keras fits, the compiled program, and the whole job.

The compiled program with a cold compilation cache has a process of its own, which fills the cache.
The fits and then the compiled program with the cache now warm share another, as they do where six
models are trained either way; the warm case is repeated in a fresh process, where starting JAX and
the first tracing cost more than the training. Imports are not counted. The job is a whole process,
imports and all; beside it, in the same run, the same steps as a Metaflow flow (`metaflow_flow.py`)
in an environment of its own. Job and flow take turns, and of each the least counts. Reported are
CPU seconds (user and system, children included), because wall time says more about what else the
machine is doing.

    make bench
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environments import python_with

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
JOB = "-m mlschool_dagster.definitions -j training_job"

TURNS = 3
"""Times that the job and the peer's flow run in turn."""

CASES = ("cold", "same process", "warm, fresh process")
"""Processes to measure in, in this order: the first fills the compilation cache for the others."""

REPETITIONS = 5
"""Trainings with a warm cache in the process of the fits; the least counts, as in `timeit`."""

LIMITS = {"compiled, cold": 4, "compiled, warm, same process": 30}
"""How many times cheaper than the fits each must be."""

JOBS = ("training_job, whole", "Metaflow flow, whole")

Inputs = tuple[Any, Any, Any]


def load() -> Inputs:
    """The penguins, their spec and the default config; imports all that training needs."""
    import sklearn.compose
    import sklearn.model_selection  # noqa: F401

    from mlschool_dagster.dataset.spec import load_spec
    from mlschool_dagster.dataset.tables import read_data
    from mlschool_dagster.modeling.training import import_keras
    from mlschool_dagster.modeling.training_config import TrainingConfig

    import_keras()
    spec = load_spec(ROOT / "data" / "penguins.yaml")
    return read_data(str(ROOT / "data" / "penguins.csv"), spec), spec, TrainingConfig()


def fit_one_after_another(inputs: Inputs) -> dict[str, Any]:
    """Five folds and the final fit by `Model.fit`, as most programs do it."""
    import keras
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    from mlschool_dagster.modeling.features import input_frame, new_transformer

    frame, spec, config = inputs
    started = time.process_time()
    keras.utils.set_random_seed(config.seed)
    rows = input_frame(frame, spec)
    codes = frame[spec.target.name].map(spec.target.classes.index).to_numpy()
    splitter = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    everything = np.arange(len(frame))
    accuracies = []
    for training, held_out in [*splitter.split(codes, codes), (everything, None)]:
        transformer = new_transformer(spec).fit(rows.iloc[training])
        features = transformer.transform(rows)
        network = keras.Sequential(
            [
                keras.Input((features.shape[1],)),
                *(keras.layers.Dense(units, activation="relu") for units in config.hidden_layers),
                keras.layers.Dense(len(spec.target.classes), activation="softmax"),
            ]
        )
        network.compile(
            optimizer=keras.optimizers.Adam(config.learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        validation = None if held_out is None else (features[held_out], codes[held_out])
        history = network.fit(
            features[training],
            codes[training],
            epochs=config.epochs,
            batch_size=config.batch_size,
            validation_data=validation,
            verbose=0,
        )
        if validation:
            accuracies.append(history.history["val_accuracy"][-1])
    return _measured(started, accuracies)


def compiled(inputs: Inputs, cache: Path) -> dict[str, Any]:
    """The same as one program, with the compilation cache in the folder `cache`."""
    from mlschool_dagster.modeling.training import train

    frame, spec, config = inputs
    started = time.process_time()
    result = train(frame, spec, config, compilation_cache=cache)
    return _measured(started, [curves.validation_accuracy[-1] for curves in result.curves])


def training_job(home: Path) -> dict[str, Any]:
    """``dagster job execute -j training_job`` as a whole process, imports and all."""
    before = _children_cpu_seconds()
    subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", *JOB.split()],
        cwd=ROOT,
        env={**os.environ, "MLSCHOOL_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return {"cpu_seconds": _children_cpu_seconds() - before}


def metaflow_flow(folder: Path) -> dict[str, Any]:
    """The peer's flow as a whole process with its children; all that it keeps is in `folder`."""
    pinned = ("keras", "jax", "scikit-learn", "pandas", "mlflow")
    python = python_with("metaflow", "metaflow", *pinned)
    folder.mkdir(exist_ok=True)
    before = _children_cpu_seconds()
    done = subprocess.run(
        [
            python, Path(__file__).resolve().with_name("metaflow_flow.py"), "--no-pylint", "run",
            "--data", ROOT / "data" / "penguins.csv", "--tracking", f"sqlite:///{folder}/mlflow.db",
        ],
        cwd=folder,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "METAFLOW_HOME": str(folder),
            "USERNAME": "benchmark",
        },
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    (accuracy,) = re.findall(r"accuracy (0\.\d+|1\.0)$", done.stdout, re.MULTILINE)
    cpu_seconds = _children_cpu_seconds() - before
    return {"cpu_seconds": cpu_seconds, "accuracy": float(accuracy)}


def in_this_process(case: str, cache: Path) -> dict[str, Any]:
    """The results of a `case` of `CASES`, by name."""
    inputs = load()
    if case == "same process":
        fits = fit_one_after_another(inputs)
        warm = [compiled(inputs, cache) for _ in range(REPETITIONS)]
        best = min(warm, key=lambda result: result["cpu_seconds"])
        return {"fits, one after another": fits, "compiled, warm, same process": best}
    return {f"compiled, {case}": compiled(inputs, cache)}


def main() -> None:
    """Measure all, print a table, write it as JSON, and fail if a limit is broken."""
    if len(sys.argv) > 1:
        print(json.dumps(in_this_process(sys.argv[1], Path(sys.argv[2]))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache, home = Path(folder, "cache"), Path(folder, "home")
        for case in CASES:
            results |= _in_a_process(case, str(cache))
        metaflow_flow(Path(folder, "metaflow"))
        training_job(home)
        turns = [
            (training_job(home), metaflow_flow(Path(folder, "metaflow"))) for _ in range(TURNS)
        ]
        for name, runs in zip(JOBS, zip(*turns, strict=True), strict=True):
            results[name] = min(runs, key=lambda run: run["cpu_seconds"])
    print(f"{'6 models x 50 epochs':31}{'CPU s':>8}{'times cheaper':>15}{'accuracy':>10}")
    for name, result in results.items():
        peer = JOBS[1] if name in JOBS else "fits, one after another"
        result["ratio"] = results[peer]["cpu_seconds"] / result["cpu_seconds"]
        accuracy = f"{result['accuracy']:10.4f}" if "accuracy" in result else ""
        print(f"{name:31}{result['cpu_seconds']:8.2f}{result['ratio']:15.1f}{accuracy}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2), encoding="utf-8")
    broken = [name for name, limit in LIMITS.items() if results[name]["ratio"] < limit]
    if broken:
        raise SystemExit(f"not cheap enough: {', '.join(broken)}")


def _in_a_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measured(started: float, accuracies: list[float]) -> dict[str, Any]:
    mean = sum(map(float, accuracies)) / len(accuracies)
    return {"cpu_seconds": time.process_time() - started, "accuracy": mean}


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
