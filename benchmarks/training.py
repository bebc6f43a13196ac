"""What training costs: ordinary Keras fits, the compiled program, and the whole job.

Each is a process of its own, and all run in this one run, one after another. Reported are CPU
seconds (user and system, children included), because wall time says more about what else the
machine is doing.

    python benchmarks/training.py
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
PEER_CPU_SECONDS = 565
"""The training flow of the Metaflow program that this platform re-implements."""

LIMITS = {"compiled, cold": 4, "compiled, warm cache": 30}
"""How many times cheaper than the fits each must be."""


def inputs() -> tuple[Any, Any, Any]:
    """The penguins, their spec and the default config; loads all that training imports."""
    import sklearn.compose
    import sklearn.model_selection  # noqa: F401

    from mlschool_dagster.modeling.config import TrainingConfig
    from mlschool_dagster.modeling.data import read_data
    from mlschool_dagster.modeling.network import import_keras
    from mlschool_dagster.modeling.spec import load_spec

    import_keras()
    spec = load_spec(ROOT / "data" / "penguins.yaml")
    return read_data(str(ROOT / "data" / "penguins.csv"), spec), spec, TrainingConfig()


def fit_one_after_another() -> dict[str, Any]:
    """Five folds and the final fit by `Model.fit`, as most programs do it."""
    frame, spec, config = inputs()
    import keras
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    from mlschool_dagster.modeling.features import input_frame, new_transformer

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


def compiled(cache: Path) -> dict[str, Any]:
    """The same as one program, with the compilation cache in the folder `cache`."""
    frame, spec, config = inputs()
    from mlschool_dagster.modeling.training import train

    started = time.process_time()
    result = train(frame, spec, config, compilation_cache=cache)
    return _measured(started, [curves.validation_accuracy[-1] for curves in result.curves])


def training_job(home: Path) -> dict[str, Any]:
    """``dagster job execute -j training_job`` as a whole process, imports and all."""
    before = _children_cpu_seconds()
    subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-j", "training_job"],
        cwd=ROOT,
        env={**os.environ, "MLSCHOOL_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return {"cpu_seconds": _children_cpu_seconds() - before}


def main() -> None:
    """Measure all, print a table, write it as JSON, and fail if a limit is broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", choices=["fits", "compiled"], help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        done = fit_one_after_another() if arguments.only == "fits" else compiled(arguments.cache)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache, home = Path(folder, "cache"), Path(folder, "home")
        results = {
            "fits, one after another": _in_a_process("fits", cache),
            "compiled, cold": _in_a_process("compiled", cache),
            "compiled, warm cache": _in_a_process("compiled", cache),
            "training_job, first": training_job(home),
            "training_job, again": training_job(home),
        }
    fits = results["fits, one after another"]["cpu_seconds"]
    print(f"{'6 models x 50 epochs':26}{'CPU s':>8}{'times cheaper':>15}{'accuracy':>10}")
    for name, result in results.items():
        job = name.startswith("training_job")
        result["ratio"] = (PEER_CPU_SECONDS if job else fits) / result["cpu_seconds"]
        note = " (than the peer's flow)" if job else f"{result['accuracy']:10.4f}"
        print(f"{name:26}{result['cpu_seconds']:8.2f}{result['ratio']:15.1f}{note}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2), encoding="utf-8")
    broken = [name for name, limit in LIMITS.items() if results[name]["ratio"] < limit]
    if broken:
        raise SystemExit(f"not cheap enough: {', '.join(broken)}")


def _in_a_process(only: str, cache: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--only", only, "--cache", str(cache)],
        capture_output=True,
        text=True,
        check=True,
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
