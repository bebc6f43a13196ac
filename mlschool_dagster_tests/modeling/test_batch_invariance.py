"""A row's probabilities are the same bits whatever batch, process, kernel and CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from importlib import import_module
from itertools import cycle
from math import exp
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.modeling.predictor import BLOCK, exp_negative
from mlschool_dagster_tests.modeling import networks
from mlschool_dagster_tests.modeling.networks import NETWORKS, digest, some_rows

CORES = ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")
"""Generations of kernels that OpenBLAS can be configured to use."""

# Computed once on x86-64; nothing about it is particular to that machine.
DIGEST = "d4f031a9d6d67ea9ad8a5ee1a0868216e7195a8c1d38a508548ec1af8b825e6f"


@given(
    name=st.sampled_from(sorted(NETWORKS)),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    first=st.integers(0, 100),
)
def test_a_row_has_the_same_bits_in_any_batch(name: str, sizes: list[int], first: int) -> None:
    model = NETWORKS[name]
    rows = some_rows(first + sum(sizes))[first:]
    alone = np.vstack([model.probabilities([row]) for row in rows])
    np.testing.assert_array_equal(model.probabilities(rows), alone)
    start, batches = 0, []
    for size in sizes:
        batches.append(model.probabilities(rows[start : start + size]))
        start += size
    np.testing.assert_array_equal(np.vstack(batches), alone)


def test_a_batch_of_many_blocks_is_its_rows() -> None:
    model, rows = NETWORKS["default"], some_rows(2 * BLOCK + 3)
    together = model.probabilities(rows)
    for position in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 2):
        np.testing.assert_array_equal(together[position], model.probabilities([rows[position]])[0])


def softmax(sums: list[float]) -> list[float]:
    """The last layer as its docstring states it, in exact steps of Python's numbers."""
    largest, exponentials = max(sums), []
    for value in sums:
        rest = min((largest - value) * 128, 104 * 128)
        u = 128 - (rest - round(rest))
        power = reduce(lambda product, _: product * 0.9922179382602435, range(round(rest)), 1.0)
        exponentials.append((u * u + 128**2) * (power / (2 * 128**2)))
    return [value / reduce(add, exponentials) for value in exponentials]


@pytest.mark.parametrize("name", ["default", "one unit", "none hidden", "many classes"])
def test_every_operation_is_the_one_that_is_documented(name: str) -> None:
    """Worked out number by number, in the order that the module states."""
    model, rows = NETWORKS[name], some_rows(20)
    expected = []
    for features in model.features(rows):
        x = [np.float32(value) for value in features]
        for layer in model.layers:
            products = [
                [np.float32(weight) * value for weight in line]
                for line, value in zip(layer.kernel, x, strict=True)
            ]
            sums = [reduce(add, terms) for terms in zip(*products, strict=True)]
            x = [s + np.float32(b) for s, b in zip(sums, layer.bias, strict=True)]
            if layer.activation == "relu":
                x = [max(value, np.float32(0)) for value in x]
        expected.append(softmax([float(value) for value in x]))
    np.testing.assert_array_equal(model.probabilities(rows), expected)


def environments() -> Iterator[dict[str, str]]:
    """Settings under which OpenBLAS and numpy choose other instructions, as far as they can here.

    Numpy refuses to disable what it was not built with or what the CPU lacks.
    """
    numpy_core: Any = import_module("numpy._core._multiarray_umath")
    result = numpy_core.__cpu_features__
    features = [name for name in numpy_core.__cpu_dispatch__ if result.get(name, False)]
    # The newest features, then the older ones as well.
    disabled = [" ".join(features[first:]) for first in reversed(range(len(features) + 1))]
    for core, names in zip(CORES, cycle(disabled), strict=False):
        yield {"OPENBLAS_CORETYPE": core, "NPY_DISABLE_CPU_FEATURES": names}


def test_the_bits_are_the_same_under_any_kernel_and_instructions() -> None:
    assert digest() == DIGEST
    for environment in environments():
        done = subprocess.run(
            [sys.executable, "-m", networks.__name__],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == DIGEST, (environment, done.stderr)


@given(st.floats(0, 104))
def test_the_exponential_is_right_to_eight_digits(x: float) -> None:
    assert exp_negative(np.array([x]))[0] == pytest.approx(exp(-x), rel=1e-8, abs=0)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_exponential_has_an_end_and_keeps_what_is_no_number() -> None:
    far, infinite, nan = exp_negative(np.array([1e300, np.inf, np.nan]))
    assert far == infinite == exp_negative(np.array([104.0]))[0] > 0
    assert np.isnan(nan)
    hopeless = replace(NETWORKS["default"], numeric_mean=np.full(4, np.nan))
    assert np.isnan(hopeless.probabilities(some_rows(1))).all()
    assert np.isnan(hopeless.probabilities(some_rows(50))).all()
