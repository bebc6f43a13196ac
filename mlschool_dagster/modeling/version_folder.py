"""A trained model as files: the version folder, and the code that predicts with it anywhere.

The version folder holds all that later steps need of a version: ``spec.json`` and ``compiled.npz``
(the fitted transformers and weights as arrays, which the endpoint serves), ``network.keras`` (the
Keras model they were exported from), ``reference.parquet`` (training rows with out-of-fold
predictions), ``calibration.json`` (how often those are right at which confidence), ``samples.json``
(a few rows with the Keras model's answers, which whatever serves the version must give as well),
and the code with which MLflow's pyfunc predicts. Nothing in it is a pickle, and no transformer
needs scikit-learn to be read.

A version in MLflow must keep predicting as it did, whatever the package has become since. So the
folder carries the modules that it needs, with all that they import of the package, as one flat
package whose imports are relative.
"""

import ast
import json
import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, DataSpec
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.calibration import CALIBRATION_FILE, fit_calibration
from mlschool_dagster.modeling.compiled import ARRAYS_FILE, SPEC_FILE, compile_model
from mlschool_dagster.modeling.evaluation import Sample, reference_frame, samples
from mlschool_dagster.modeling.training import TrainingResult

if TYPE_CHECKING:
    import pandas as pd

VERSION_FOLDER = "version"
NETWORK_FILE = "network.keras"
REFERENCE_FILE = "reference.parquet"
SAMPLES_FILE = "samples.json"


CODE_FOLDER = "code"
CODE = ("mlschool_dagster.modeling.compiled", "mlschool_dagster.serving.validation")
"""The modules with which the pyfunc validates rows and predicts: the endpoint's own."""

NEEDED = (SPEC_FILE, ARRAYS_FILE, REFERENCE_FILE)
FILES = (*NEEDED, NETWORK_FILE, CALIBRATION_FILE, SAMPLES_FILE)
"""The files that are fetched of a version folder; those that are not `NEEDED` may be missing."""


def write_version(
    folder: Path, result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec
) -> None:
    """Write the version folder of `result`, trained on `frame`, into `folder`."""
    copy_modules(CODE, folder / CODE_FOLDER)
    compile_model(result.transformer, result.model, spec).save(folder)
    result.model.save(folder / NETWORK_FILE)
    reference = reference_frame(result, frame, spec)
    reference.to_parquet(folder / REFERENCE_FILE)
    right = reference[PREDICTION] == reference[spec.target.name]
    calibration = fit_calibration(reference[CONFIDENCE].to_numpy(), right.to_numpy())
    calibration.predictive().save(folder)
    known = [asdict(sample) for sample in samples(result, frame, spec)]
    (folder / SAMPLES_FILE).write_text(json.dumps(known, indent=2), encoding="utf-8")


def read_samples(folder: Path) -> list[Sample]:
    """The samples in the version folder `folder`.

    Raises:
        UserError: they are missing or damaged.
    """
    try:
        known = json.loads((folder / SAMPLES_FILE).read_text(encoding="utf-8"))
        return [Sample(**entry) for entry in known]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The version in {folder} has no samples with known answers ({error}), as those of "
            "earlier releases; train a new one."
        ) from None


PACKAGE = __name__.partition(".")[0]


def copy_modules(roots: tuple[str, ...], destination: Path) -> None:
    """Write the modules named `roots`, and those that they import, as the package `destination`.

    Raises:
        ValueError: two of them have the same last name, or one has an import of a form that is not
            copied.
    """
    copied: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        name = module.rpartition(".")[2]
        if copied.setdefault(name, module) != module:
            raise ValueError(f"{module} and {copied[name]} would be one file")
        if (destination / f"{name}.py").exists():
            continue
        source = _source(module)
        imported = _imports(source)
        destination.mkdir(parents=True, exist_ok=True)
        relative = re.sub(
            rf"\bfrom {PACKAGE}\.(?:\w+\.)*(\w+) import\b", r"from .\1 import", source
        )
        if len(_imports(relative)):
            raise ValueError(f"{module} imports {PACKAGE} in a form that is not copied")
        (destination / f"{name}.py").write_text(relative, encoding="utf-8")
        waiting += imported
    (destination / "__init__.py").touch()


def _imports(source: str) -> list[str]:
    """The modules of this package that `source` imports."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return [module for module in modules if module.partition(".")[0] == PACKAGE]


def _source(module: str) -> str:
    source = find_spec(module)
    if source is None or source.origin is None or Path(source.origin).stem == "__init__":
        raise ValueError(f"{module} is no module that can be copied")
    return Path(source.origin).read_text(encoding="utf-8")
