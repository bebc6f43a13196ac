"""The network: dense layers, and the weights they start from."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.garbage import no_garbage_collection

if TYPE_CHECKING:
    import keras


def import_keras() -> Any:
    """Keras, running on JAX.

    Raises:
        RuntimeError: Keras was imported before on another backend.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"
        with no_garbage_collection():
            import keras
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()} here, not on JAX")
    return keras


def build_network(features: int, hidden_layers: Sequence[int], classes: int) -> "keras.Sequential":
    """A network from `features` inputs to the probabilities of `classes` classes.

    Hidden layers are rectified linear units, the last layer is a softmax. All weights are zero:
    training starts from `initial_weights` instead.
    """
    keras = import_keras()
    units = [*hidden_layers, classes]
    activations = ["relu"] * len(hidden_layers) + ["softmax"]
    layers = [
        # Keras's own initializers run on JAX eagerly and compile a program for every shape: three
        # CPU seconds, for weights that are replaced.
        keras.layers.Dense(
            size, activation=activation, kernel_initializer=_zeros, bias_initializer=_zeros
        )
        for size, activation in zip(units, activations, strict=True)
    ]
    network = keras.Sequential([keras.Input((features,)), *layers])
    for layer in layers:
        layer.kernel_initializer = keras.initializers.GlorotUniform()
        layer.bias_initializer = keras.initializers.Zeros()
    return network


def initial_weights(
    network: "keras.Sequential", rng: np.random.Generator
) -> list[npt.NDArray[np.float32]]:
    """Weights to start training from, in the order of the network's trainable variables.

    Kernels are drawn uniformly within sqrt(6 / (inputs + outputs)) of zero (Glorot and Bengio 2010,
    "Understanding the difficulty of training deep feedforward neural networks", eq. 16), biases are
    zero: Keras's defaults for dense layers.
    """
    weights = []
    for variable in network.trainable_variables:
        shape = tuple(variable.shape)
        limit = np.sqrt(6.0 / sum(shape)) if len(shape) == 2 else 0.0
        weights.append(rng.uniform(-limit, limit, shape).astype(np.float32))
    return weights


def _zeros(shape: Sequence[int], dtype: str | None = None) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype)
