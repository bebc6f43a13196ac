"""Logging to MLflow: a training's parameters, metrics and artifacts, and the model to register.

Everything goes into the active run, which the caller opens and ends.
"""

import json
import os
import platform
import subprocess
import time
import warnings
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import distributions as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec, probability_column
from mlschool_dagster.dataset.tables import content_digest
from mlschool_dagster.modeling import plots
from mlschool_dagster.modeling.evaluation import Evaluation
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.training import Curves, TrainingResult
from mlschool_dagster.modeling.version_folder import VERSION_FOLDER, write_version

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric
    from mlflow.models import ModelSignature

COMMIT_TAG = "git_commit"


EXAMPLE_ROWS = 3

SERVING_PACKAGES = ("mlflow", "numpy", "orjson", "pandas")
"""Requirements of ``serving_model.py`` and of the modules that a version carries; pinned in each
version to what it was trained with."""


def log_training(
    result: TrainingResult,
    evaluation: Evaluation,
    frame: "pd.DataFrame",
    spec: DataSpec,
    source: str | None = None,
) -> dict[str, bytes]:
    """Log a training and its evaluation, with a nested run for each fold.

    Parameters, curves per epoch, scores, confusion matrix, classification report, calibration,
    pictures, the data set with its digest and `source` (the URI it was read from), the installed
    packages and the git commit.

    Returns:
        The pictures that were logged, name to PNG, to be shown elsewhere without drawing again.
    """
    import mlflow
    from mlflow.entities import Param

    pictures = _pictures(result, evaluation, spec)
    client, run = mlflow.MlflowClient(), mlflow.active_run()
    scores = {
        "accuracy_mean": evaluation.accuracy_mean,
        "accuracy_std": evaluation.accuracy_std,
        "expected_calibration_error": evaluation.calibration.expected_error,
    }
    client.log_batch(
        run.info.run_id,
        metrics=_points(scores) + _history(result.final_curves),
        params=_parameters(result),
        tags=_tags(),
    )
    _log_dataset(frame, spec, source)
    with TemporaryDirectory() as folder:
        _write(Path(folder), evaluation, pictures, spec)
        client.log_artifacts(run.info.run_id, folder)
    for fold, curves in enumerate(result.curves):
        with mlflow.start_run(
            run_name=f"fold-{fold + 1}",
            # A nested run would start in the globally chosen experiment, not in its parent's.
            experiment_id=run.info.experiment_id,
            nested=True,
        ) as nested:
            held_out = result.fold_of_row == fold
            figures = {
                "accuracy": evaluation.fold_accuracies[fold],
                "rows_trained_on": (~held_out).sum(),
                "rows_held_out": held_out.sum(),
            }
            client.log_batch(
                nested.info.run_id,
                metrics=_points(figures) + _history(curves),
                params=[*_parameters(result), Param("fold", str(fold + 1))],
                tags=_tags(),
            )
    return pictures


def log_model(
    result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec, name: str | None = None
) -> str:
    """Log the model into the active MLflow run, as `name` or as the spec is called.

    The model is a models-from-code pyfunc (``serving_model.py``) around the version folder.

    Returns:
        The model's URI, to be registered.
    """
    import mlflow

    example = input_frame(frame, spec).dropna().head(EXAMPLE_ROWS).reset_index(drop=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, VERSION_FOLDER)
        write_version(folder, result, frame, spec)
        info = mlflow.pyfunc.log_model(
            name=name or spec.name,
            python_model=str(Path(__file__).with_name("serving_model.py")),
            artifacts={VERSION_FOLDER: str(folder)},
            signature=_signature(spec),
            input_example=example,
            # What is imported knows its version, however it was installed.
            pip_requirements=[f"{n}=={import_module(n).__version__}" for n in SERVING_PACKAGES],
        )
    return str(info.model_uri)


def git_commit(source: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that the code in `source` belongs to.

    None outside a checkout, in one without a commit, and where another repository lies around the
    code without holding it, as around a virtual environment.
    """
    source = source.resolve()
    # Fails unless the file is in the index of the repository around it.
    tracked = ["git", "ls-files", "--error-unmatch", "--", source.name]
    commit = ["git", "rev-parse", "--verify", "--quiet", "HEAD^{commit}"]
    # A hook or an IDE may point these to another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    output = ""
    for command in (tracked, commit):
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                command,
                cwd=source.parent,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return None
        if done.returncode:
            return None
        output = done.stdout.strip()
    return output


def environment() -> dict[str, Any]:
    """The Python, the platform and the version of every installed package.

    What is installed but cannot be read, as after an installation that broke off, is named.
    """
    packages: dict[str, str] = {}
    unreadable: list[str] = []
    for package in installed():
        try:
            packages[package.metadata["Name"] or ""] = package.version or ""
        except Exception:
            # Each version of Python raises something else.
            packages[""] = ""
        if packages.pop("", None) is not None:
            unreadable.append(str(getattr(package, "_path", package)))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
        "unreadable": sorted(unreadable),
    }


def _pictures(result: TrainingResult, evaluation: Evaluation, spec: DataSpec) -> dict[str, bytes]:
    return {
        "fold_accuracies": plots.fold_accuracies(evaluation),
        "learning_curves": plots.learning_curves(result),
        "confusion_matrix": plots.confusion_matrix(
            evaluation.confusion, spec, "Out-of-fold predictions"
        ),
        "reliability": plots.reliability_diagram(evaluation),
    }


def _parameters(result: TrainingResult) -> "list[Any]":
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in asdict(result.config).items()]


def _tags() -> "list[Any]":
    from mlflow.entities import RunTag

    commit = git_commit()
    return [RunTag(COMMIT_TAG, commit)] if commit else []


def _points(values: dict[str, float]) -> "list[Metric]":
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    return [Metric(name, float(value), now, 0) for name, value in values.items()]


def _history(curves: Curves) -> "list[Metric]":
    """A metric per curve and epoch; a fit that holds no rows back has no validation curves."""
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    return [
        Metric(f"epoch_{name}", float(value), now, epoch)
        for name, values in vars(curves).items()
        for epoch, value in enumerate(values, start=1)
        if np.isfinite(value)
    ]


def _log_dataset(frame: "pd.DataFrame", spec: DataSpec, source: str | None) -> None:
    import mlflow

    digest = content_digest(frame)
    with warnings.catch_warnings():
        # MLflow knows two kinds of local source and warns that a path could be either.
        warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")
        dataset = mlflow.data.from_pandas(
            frame,
            source=source,
            targets=spec.target.name,
            name=spec.name,
            # MLflow keeps at most 36 characters.
            digest=digest[:36],
        )
    mlflow.log_input(dataset, context="training", tags={"sha256": digest})


def _write(
    folder: Path, evaluation: Evaluation, pictures: dict[str, bytes], spec: DataSpec
) -> None:
    documents = {
        "confusion_matrix": {
            "classes": spec.target.classes,
            "rows": "true class, then predicted class",
            "counts": evaluation.confusion.tolist(),
        },
        "classification_report": [asdict(scores) for scores in evaluation.scores],
        "calibration": {
            name: np.asarray(value).tolist() for name, value in vars(evaluation.calibration).items()
        },
        "environment": environment(),
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=2).replace("NaN", "null")
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "pictures").mkdir()
    for name, png in pictures.items():
        (folder / "pictures" / f"{name}.png").write_bytes(png)


def _signature(spec: DataSpec) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    # Any type: MLflow takes no int64 for a double, and a column without values for no text. The
    # model itself judges each value by the spec, as the endpoint does.
    inputs = [ColSpec(AnyType(), c.name, required=not c.nullable) for c in spec.columns]
    confidences = [CONFIDENCE, *map(probability_column, spec.target.classes)]
    outputs = [ColSpec("string", PREDICTION), *(ColSpec("double", n) for n in confidences)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))
