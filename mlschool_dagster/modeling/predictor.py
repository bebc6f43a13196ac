"""From rows to probabilities: the arithmetic of a trained model, with numpy alone.

The endpoint, batches, comparisons and MLflow's pyfunc all predict with this module. Each version
carries a copy of it, which the pyfunc runs, so it imports nothing of the package.

**A row's probabilities are the same bits** alone, in any batch, in any process and on any CPU with
IEEE 754 arithmetic. They depend neither on what else is in the batch nor on the instructions that
numpy or a BLAS library chooses, because

- only operations whose result IEEE 754 prescribes are used: addition, subtraction, multiplication,
  division, rounding to an integer, comparison. Each is a numpy call of its own, so that no compiler
  can fuse two of them. ``numpy.exp``, ``numpy.tanh`` and matrix products are avoided: they differ
  between CPUs, and between the positions in one array.
- sums are added up input by input (`_add_up`).

Layers compute in single precision, as the network was trained. Arrays have shape (units, rows), so
that each numpy call runs along rows.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, repeat
from operator import itemgetter, mul
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

BLOCK = 2048
"""Rows worked on at a time: what a layer computes of them stays in the CPU's cache."""

FEW = 16
"""Up to so many sums are worked on by Python itself, which takes less time than to call numpy."""

STEPS = 128
"""Steps per unit in the table of the exponential."""

LARGEST = 104
"""``exp(-104)`` is below the least positive number of single precision."""

_STEP = 0.9922179382602435
"""``exp(-1 / 128)``."""

# One product after the other, in Python's doubles: the same table everywhere, with a relative error
# below 13312 * 2**-53. The divisor belongs to the parabola in `exp_negative`.
_POWERS_LIST = [
    power / (2 * STEPS**2) for power in accumulate(repeat(_STEP, STEPS * LARGEST), mul, initial=1.0)
]
_POWERS = np.array(_POWERS_LIST)

# Arrays, since numpy takes longer to convert a Python number than to add it.
_ZERO = np.array(0, np.float32)
_HALF = np.array(0.5)
_ONE = np.array(1.0)
_STEPS = np.array(float(STEPS))
_STEPS_SQUARED = np.array(float(STEPS**2))
_LIMIT = np.array(float(STEPS * LARGEST))


def exp_negative(x: Doubles) -> Doubles:
    """``exp(-x)`` for `x` >= 0, with a relative error below 1e-8; more than 104 counts as 104.

    ``x = (k + d) / 128`` with an integer k and ``|d| <= 1/2``. ``exp(-k / 128)`` is in a table;
    ``exp(-u)`` with ``u = d / 128`` is the parabola ``1 - u + u**2 / 2 = ((1 - u)**2 + 1) / 2``.
    """
    rest = x * _STEPS
    np.minimum(rest, _LIMIT, out=rest)
    whole = np.rint(rest)
    rest -= whole
    result = _STEPS - rest
    result *= result
    result += _STEPS_SQUARED
    # NaN has no place in the table, and stays NaN.
    result *= _POWERS.take(whole.astype(np.intp), mode="clip")
    return np.asarray(result)


def _softmax(x: Singles) -> Doubles:
    if 0 < x.size <= FEW:
        try:
            return np.array([_softmax_of(sums) for sums in x.T.tolist()]).T
        except ValueError:
            # Not a number; the arrays below carry it along.
            pass
    wide = x.astype(np.float64)
    # A maximum is the same in any order.
    exponentials = exp_negative(np.maximum.reduce(wide) - wide)
    exponentials /= _add_up(exponentials)
    return exponentials


def _softmax_of(sums: list[float]) -> list[float]:
    """The same operations in the same order in Python's doubles, for a row by itself.

    Raises:
        ValueError: a sum is not a number.
    """
    largest = max(sums)
    exponentials = []
    total = 0.0
    for value in sums:
        rest = min((largest - value) * STEPS, STEPS * LARGEST)
        whole = round(rest)
        part = STEPS - (rest - whole)
        exponential = (part * part + STEPS**2) * _POWERS_LIST[whole]
        exponentials.append(exponential)
        total += exponential
    return [exponential / total for exponential in exponentials]


def _sigmoid(x: Singles) -> Singles:
    wide = x.astype(np.float64)
    small = exp_negative(np.abs(wide))
    return np.asarray(np.where(wide < 0, small, _ONE) / (_ONE + small), dtype=np.float32)


def _tanh(x: Singles) -> Singles:
    wide = x.astype(np.float64)
    small = exp_negative(np.abs(wide + wide))
    return np.asarray(np.copysign((_ONE - small) / (_ONE + small), wide), dtype=np.float32)


def _relu(x: Singles) -> Singles:
    return np.maximum(x, _ZERO, out=x)


ACTIVATIONS: Mapping[str, Callable[[Singles], Any]] = {
    "linear": lambda x: x,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "tanh": _tanh,
}
"""Activation functions of a layer's sums, of shape (units, rows)."""


def _add_up(terms: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The sum over the first axis, one term after the other whatever the shape."""
    if terms.size > len(terms):
        # Each line of terms is added to the line of sums.
        return np.add.reduce(terms)  # type: ignore[no-any-return]
    # Along a single line numpy's reduction works on several partial sums at once.
    return np.add.accumulate(terms)[-1]  # type: ignore[no-any-return]


class Predictor:
    """Imputation, standardisation, one-hot encoding and a dense network, as fitted arrays.

    `numeric` and `categorical` name the columns in the order of the arrays. `fitted` holds
    ``numeric_fill``, ``numeric_mean`` and ``numeric_scale`` (a value for each numeric column: what
    replaces a null, what is subtracted and then divided by), ``categorical_fill`` (a category for
    each categorical column), ``categories_<i>`` (those of the i-th categorical column),
    ``activations`` (a name in `ACTIVATIONS` for each layer, the last one softmax), and
    ``kernel_<i>`` of shape (inputs, units) and ``bias_<i>`` of each layer. The features are the
    numeric columns, then the one-hot categories of each categorical column.
    """

    def __init__(
        self,
        numeric: Sequence[str],
        categorical: Sequence[str],
        fitted: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        self._values = values_getter([*numeric, *categorical])
        self._count = len(numeric)
        self._fill, self._mean, self._scale = (
            np.asarray(fitted[f"numeric_{name}"], dtype=np.float64)[:, None]
            for name in ("fill", "mean", "scale")
        )
        self._codes: list[_Codes] = []
        sources: list[int] = []
        codes: list[int] = []
        for i, fill in enumerate(fitted["categorical_fill"]):
            names = [str(name) for name in fitted[f"categories_{i}"]]
            self._codes.append(_Codes(names, str(fill)))
            sources += [self._count + i] * len(names)
            codes += range(len(names))
        # Which column each one-hot feature reads, and which code sets it.
        self._sources = np.array(sources, dtype=np.intp)
        self._code = np.array(codes, dtype=np.float64)[:, None]
        self._layers = [
            (
                np.asarray(fitted[f"kernel_{i}"], dtype=np.float32)[:, :, None],
                np.asarray(fitted[f"bias_{i}"], dtype=np.float32)[:, None],
                ACTIVATIONS[str(activation)],
            )
            for i, activation in enumerate(fitted["activations"])
        ]

    def features(self, rows: Sequence[Mapping[str, Any]]) -> Doubles:
        """The features of `rows`, shape (features, rows).

        Null (None or NaN) is imputed; a category that training did not know gives zeros.

        Raises:
            KeyError: a row lacks a column.
        """
        if not rows:
            return np.empty((self._count + len(self._sources), 0))
        columns = list(zip(*map(self._values, rows), strict=True))
        encoded = [
            list(map(codes.__getitem__, column))
            for codes, column in zip(self._codes, columns[self._count :], strict=True)
        ]
        # None becomes NaN.
        cells = np.array([*columns[: self._count], *encoded], dtype=np.float64)
        numbers = cells[: self._count]
        np.copyto(numbers, self._fill, where=np.isnan(numbers))
        numbers -= self._mean
        numbers /= self._scale
        return np.concatenate((numbers, cells.take(self._sources, axis=0) == self._code))

    def probabilities(self, rows: Sequence[Mapping[str, Any]]) -> Doubles:
        """The probability of each class for each of `rows`, shape (rows, classes).

        Raises:
            KeyError: a row lacks a column.
        """
        if len(rows) <= BLOCK:
            return self._block(rows)
        starts = range(0, len(rows), BLOCK)
        return np.concatenate([self._block(rows[start : start + BLOCK]) for start in starts])

    def _block(self, rows: Sequence[Mapping[str, Any]]) -> Doubles:
        x: npt.NDArray[Any] = self.features(rows).astype(np.float32)
        for kernel, bias, activate in self._layers:
            sums = _add_up(kernel * x[:, None])
            sums += bias
            x = activate(sums)
        return x.T


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays in the ``.npz`` file at `path`, which are no larger than the file itself.

    Raises:
        OSError: it cannot be read.
        BadZipFile, EOFError, ValueError: it is damaged, or is packed so that it unfolds to more.
    """
    with ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    # `numpy.savez` does not compress.
    if unfolded > path.stat().st_size:
        raise ValueError(f"{path.name} unfolds to {unfolded} bytes, more than it has")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


class _Codes(dict[Any, int]):
    """The code of each category, and of null that of its fill; -1 for what is unknown."""

    def __init__(self, names: Sequence[str], fill: str) -> None:
        super().__init__((name, code) for code, name in enumerate(names))
        self[None] = self.get(fill, -1)

    def __missing__(self, value: Any) -> int:
        return self[None] if value != value else self.get(str(value), -1)


def values_getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function from a row to its values of `names`, as a tuple whatever their number."""
    get = itemgetter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)
