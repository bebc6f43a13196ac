"""The network, and its training: cross-validation and the final fit in one compiled program."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.errors import UserError, listed
from mlschool_dagster.garbage import no_garbage_collection
from mlschool_dagster.modeling.compiled import compile_model
from mlschool_dagster.modeling.features import input_frame, new_transformer
from mlschool_dagster.modeling.training_config import TrainingConfig

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from sklearn.compose import ColumnTransformer


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


Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Curves:
    """Loss (mean cross-entropy, nats) and accuracy after each epoch; each of shape (epochs,).

    The validation curves are NaN for the final fit, which holds no rows back.
    """

    loss: Floats
    accuracy: Floats
    validation_loss: Floats
    validation_accuracy: Floats


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """The result of a training, aligned with the rows of its data.

    Attributes:
        config: how it was trained.
        curves: one per fold.
        final_curves: those of the final fit, on all rows.
        fold_of_row: (rows,), the fold in which each row was held out.
        probabilities: (rows, classes), predicted for each row by the fold that held it out.
        model: the final Keras model, from transformed features to probabilities.
        transformer: the final transformer, fitted on all rows.
    """

    config: TrainingConfig
    curves: tuple[Curves, ...]
    final_curves: Curves
    fold_of_row: npt.NDArray[np.intp]
    probabilities: Floats
    model: "keras.Sequential"
    transformer: "ColumnTransformer"


def train(
    frame: "pd.DataFrame",
    spec: DataSpec,
    config: TrainingConfig,
    progress: Callable[[str], None] = lambda message: None,
    compilation_cache: Path | None = None,
) -> TrainingResult:
    """Cross-validate on stratified folds and fit the final model on all rows of `frame`.

    Transformers are fitted anew inside each fold. All networks train side by side as one program
    over Keras's stateless API. `progress` gets a sentence for each step. Compiled programs are
    kept in the folder `compilation_cache`, if given, and loaded by later processes.

    Raises:
        UserError: a class is unknown or has fewer rows than there are folds.
    """
    targets = _target_codes(frame, spec, config)
    held_out = _folds(targets, config)
    keras = import_keras()
    if compilation_cache is not None:
        _keep_compiled_programs(compilation_cache)

    inputs = input_frame(frame, spec)
    training = np.vstack([~held_out, np.ones_like(held_out[:1])])
    transformers = [new_transformer(spec).fit(inputs[rows]) for rows in training]
    features = np.stack([t.transform(inputs) for t in transformers]).astype(np.float32)

    network = build_network(features.shape[2], config.hidden_layers, len(spec.target.classes))
    seeds = np.random.SeedSequence(config.seed).spawn(len(training))
    starts = [initial_weights(network, np.random.default_rng(seed)) for seed in seeds]
    progress(
        f"Training {config.folds} folds and the final model side by side for {config.epochs} "
        f"epochs on {len(frame)} rows."
    )
    with no_garbage_collection():
        weights, curves = _program(keras, network, config)(
            np.stack([_flat(start) for start in starts]),
            np.array([seed.generate_state(1)[0] for seed in seeds], dtype=np.uint32),
            features,
            training,
            targets,
        )
    fold_of_row = held_out.argmax(axis=0)
    probabilities = np.empty((len(frame), len(spec.target.classes)))
    for rows, transformer, vector in zip(training, transformers, np.asarray(weights), strict=True):
        network.set_weights(_shaped(vector, network))
        # By the arithmetic that will serve; the last network, which stays, has held nothing out.
        model = compile_model(transformer, network, spec)
        probabilities[~rows] = model.probabilities(inputs[~rows].to_dict("records"))

    histories = [Curves(*rows) for rows in np.stack(curves, axis=1).astype(np.float64)]
    for number, history in enumerate(histories[:-1], start=1):
        accuracy = history.validation_accuracy[-1]
        progress(f"Fold {number} of {config.folds}: accuracy {accuracy:.4f} on rows held out.")
    return TrainingResult(
        config=config,
        curves=tuple(histories[:-1]),
        final_curves=histories[-1],
        fold_of_row=fold_of_row,
        probabilities=probabilities,
        model=network,
        transformer=transformers[-1],
    )


def _target_codes(
    frame: "pd.DataFrame", spec: DataSpec, config: TrainingConfig
) -> npt.NDArray[np.int32]:
    """The position of each row's class among the spec's classes."""
    name, classes = spec.target.name, spec.target.classes
    unknown = ~frame[name].isin(classes)
    if unknown.any():
        raise UserError(
            f"Column {name} has {int(unknown.sum())} rows without one of the classes "
            f"{listed(classes)}; label or remove them."
        )
    counts = {label: int((frame[name] == label).sum()) for label in classes}
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < config.folds:
        raise UserError(
            f"Class {rarest} has {counts[rarest]} rows, too few for {config.folds} folds; "
            "use fewer folds or more data."
        )
    codes = {label: code for code, label in enumerate(classes)}
    return np.asarray(frame[name].map(codes), dtype=np.int32)


def _folds(targets: npt.NDArray[np.int32], config: TrainingConfig) -> npt.NDArray[np.bool_]:
    """Which rows each fold holds out, shape (folds, rows)."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    held_out = np.zeros((config.folds, len(targets)), dtype=bool)
    for fold, (_, rows) in enumerate(splitter.split(targets, targets)):
        held_out[fold, rows] = True
    return held_out


def _keep_compiled_programs(folder: Path) -> None:
    import jax

    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX keeps only what took a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _flat(weights: list[Floats]) -> Floats:
    return np.concatenate([weight.ravel() for weight in weights])


def _shaped(flat: Any, network: Any) -> list[Any]:
    """The vector `flat` cut into the network's trainable variables."""
    shapes = [tuple(variable.shape) for variable in network.trainable_variables]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [
        flat[end - math.prod(shape) : end].reshape(shape)
        for shape, end in zip(shapes, ends.tolist(), strict=True)
    ]


def _program(keras: Any, network: Any, config: TrainingConfig) -> Any:
    """The compiled training of several networks at once.

    It takes weights (networks x parameters), seeds (networks,), features (networks x rows x
    features), which rows to train on (networks x rows) and target codes (rows,). It gives the
    weights after training and the four arrays of `Curves` (networks x epochs).
    """
    import jax
    import jax.numpy as jnp

    # All weights are one variable to the optimizer: the update of each weight by itself is the
    # same, and there is much less to compile.
    optimizer = keras.optimizers.get(
        {"class_name": config.optimizer, "config": {"learning_rate": config.learning_rate}}
    )
    optimizer.build([keras.Variable(np.zeros(network.count_params(), np.float32))])
    start_of_optimizer = [variable.value for variable in optimizer.variables]

    def predict(weights: Any, x: Any) -> Any:
        return network.stateless_call(_shaped(weights, network), [], x)[0]

    def entropy(probabilities: Any, y: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(y, probabilities)

    def batch_loss(weights: Any, x: Any, y: Any, counts: Any) -> Any:
        return jnp.sum(entropy(predict(weights, x), y) * counts) / jnp.maximum(counts.sum(), 1)

    def fit(weights: Any, seed: Any, x: Any, training: Any, y: Any) -> Any:
        rows = len(y)
        steps = math.ceil(rows / config.batch_size)
        padding = steps * config.batch_size - rows

        def step(state: Any, batch: Any) -> tuple[Any, None]:
            (weights, moments), (chosen, counts) = state, batch
            gradient = jax.grad(batch_loss)(weights, x[chosen], y[chosen], counts)
            [updated], new_moments = optimizer.stateless_apply(moments, [gradient], [weights])
            # A fold with fewer rows has fewer batches: the empty ones must leave no trace, not even
            # in the optimizer's moments.
            present = counts.any()
            return jax.tree.map(
                lambda new, old: jnp.where(present, new, old), (updated, new_moments), state
            ), None

        def epoch(state: Any, key: Any) -> tuple[Any, Any]:
            # The rows to train on come first, in random order.
            order = jnp.argsort(jnp.where(training, jax.random.uniform(key, (rows,)), 2.0))
            batches = jnp.pad(order, (0, padding)).reshape(steps, config.batch_size)
            counts = (jnp.arange(rows + padding) < training.sum()).reshape(batches.shape)
            state, _ = jax.lax.scan(step, state, (batches, counts.astype(x.dtype)))
            return state, evaluate(state[0])

        def evaluate(weights: Any) -> Any:
            probabilities = predict(weights, x)
            losses = entropy(probabilities, y)
            hits = probabilities.argmax(axis=1) == y
            return [
                jnp.sum(values * part) / part.sum()
                for part in (training, ~training)
                for values in (losses, hits)
            ]

        keys = jax.random.split(jax.random.key(seed), config.epochs)
        (weights, _), curves = jax.lax.scan(epoch, (weights, start_of_optimizer), keys)
        return weights, curves

    return jax.jit(jax.vmap(fit, in_axes=(0, 0, 0, 0, None)))
