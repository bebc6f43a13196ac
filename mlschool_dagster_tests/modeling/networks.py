"""Networks of many shapes, and a hash of all that they say: imported by processes of their own."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import InputValue, Target
from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer
from mlschool_dagster.modeling.predictor import ACTIVATIONS, FEW
from mlschool_dagster_tests.serving.tiny_model import SPEC, tiny_model

Rows = list[dict[str, InputValue]]


def weights(count: int, *shape: int) -> npt.NDArray[np.float64]:
    """Numbers that look like weights, of `shape`, the same everywhere."""
    size = int(np.prod(shape))
    return (((np.arange(size) * 7919 + count * 104729) % 2003 - 1001) / 811.0).reshape(shape)


def network(*units: int, activation: str = "relu") -> CompiledModel:
    """A network over the penguins' columns with hidden layers and classes of so many `units`."""
    names = [activation] * (len(units) - 1) + ["softmax"]
    layers = [
        DenseLayer(weights(i, inputs, outputs), weights(-i, outputs), name)
        for i, (inputs, outputs, name) in enumerate(zip((9, *units), units, names, strict=False))
    ]
    classes = tuple(f"class {i}" for i in range(units[-1]))
    spec = replace(SPEC, target=Target("species", classes))
    return replace(tiny_model(), spec=spec, layers=tuple(layers))


NETWORKS = {
    "default": network(10, 8, 3),
    "one unit": network(1, 1, 2),
    "none hidden": network(3),
    "wide": network(65, 33, 2),
    "many classes": network(17, 40),
    "more classes than are few": network(4, FEW + 1),
    **{f"with {name}": network(7, 5, 3, activation=name) for name in ACTIVATIONS},
}


def some_rows(count: int) -> Rows:
    """Rows of which some lack values, and some are far from what is usual."""
    islands = ("Biscoe", None, "Dream", "elsewhere", "Torgersen")
    return [
        {
            "island": islands[i % 5],
            "culmen_length_mm": None if i % 11 == 3 else 15 + i * 0.37 % 75,
            "culmen_depth_mm": 5 + i * 0.13 % 35,
            "flipper_length_mm": 100 + i % 200,
            "body_mass_g": float("nan") if i % 7 == 5 else 1000 + i * 31 % 9000,
            "sex": ("MALE", "FEMALE", None)[i % 3],
        }
        for i in range(count)
    ]


def digest() -> str:
    """A hash of what all networks say, row by row and in batches of every size."""
    hashed = hashlib.sha256()
    rows = some_rows(67)
    for model in NETWORKS.values():
        for size in (1, 2, 3, 8, 17, 67):
            for start in range(0, len(rows), size):
                hashed.update(
                    model.probabilities(rows[start : start + size]).astype("<f8").tobytes()
                )
    return hashed.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(digest())
