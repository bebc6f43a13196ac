"""Configuration of training, apart from the numerics so that definitions load quickly."""

import math
from dataclasses import dataclass

from mlschool_dagster.errors import UserError

OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd")
"""The Keras optimizers that training can be configured with."""


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of the network and its training.

    ``hidden_layers`` are units per hidden layer, ``optimizer`` is one of `OPTIMIZERS`, ``folds``
    the number of stratified cross-validation folds. Equal ``seed``, data and configuration give
    equal weights.

    Raises:
        UserError: a value is out of its range.
    """

    hidden_layers: tuple[int, ...] = (10, 8)
    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 0.01
    optimizer: str = "adam"
    folds: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before any work is done."""
        rules = {
            "hidden_layers": (all(n >= 1 for n in self.hidden_layers), "positive unit counts"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "folds": (self.folds >= 2, "at least 2"),
            "seed": (0 <= self.seed < 2**32, "between 0 and 4294967295"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                value = getattr(self, name)
                raise UserError(f"The training config has {name} = {value!r}; use {expected}.")
