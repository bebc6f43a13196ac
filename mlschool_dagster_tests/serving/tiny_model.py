"""A small model made directly from arrays: known by heart, different from version to version."""

from pathlib import Path

import numpy as np

from mlschool_dagster.dataset.spec import InputValue, load_spec
from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer

DATA = Path(__file__).parents[2] / "data"
SPEC = load_spec(DATA / "penguins.yaml")

ROW: dict[str, InputValue] = {
    "island": "Biscoe",
    "culmen_length_mm": 48.6,
    "culmen_depth_mm": 16.0,
    "flipper_length_mm": 230,
    "body_mass_g": 5800,
    "sex": "MALE",
}
"""A valid row; every model made here answers it without a tie."""


def tiny_model(seed: int = 1) -> CompiledModel:
    """A two-layer network over the penguins spec with weights drawn from `seed`."""
    random = np.random.default_rng(seed)
    return CompiledModel(
        spec=SPEC,
        numeric_fill=np.array([43.9, 17.2, 200.9, 4201.8]),
        numeric_mean=np.array([43.9, 17.2, 200.9, 4201.8]),
        numeric_scale=np.array([5.4, 2.0, 14.0, 801.0]),
        categorical_fill=("Biscoe", "MALE"),
        categories=(("Biscoe", "Dream", "Torgersen"), ("FEMALE", "MALE")),
        layers=(
            DenseLayer(random.normal(size=(9, 10)), random.normal(size=10), "relu"),
            DenseLayer(random.normal(size=(10, 3)), random.normal(size=3), "softmax"),
        ),
    )
