"""Confidence calibration: the chance that a prediction is right, learnt from out-of-fold rows.

A confidence is turned into the chance that the prediction is right by a logistic curve over its log
odds, ``intercept + slope * logit(confidence)`` (Platt 1999; on log odds it is the symmetric beta
calibration of Kull, Silva Filho and Flach 2017; that only the predicted class matters is top-label
calibration, Gupta and Ramdas 2022). With the few errors that a few hundred rows hold, two
parameters are what can be learnt, and not exactly: so they are kept as draws from their posterior
distribution. The prior says that confidences mean what they say, give or take; isotonic regression
and the bootstrap would call a model without an error in its out-of-fold rows infallible.

It changes no answer of an endpoint: it is for judging them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlschool_dagster.errors import UserError

Array = npt.NDArray[np.float64]

CALIBRATION_FILE = "calibration.json"

LOWEST_LOGIT, HIGHEST_LOGIT, BIN_WIDTH = -7.0, 7.0, 0.1
"""Log odds by which confidences are counted. Beyond 0.999 a confidence says nothing more: an
error there is a wrong label, or an input unlike all training data."""

BINS = round((HIGHEST_LOGIT - LOWEST_LOGIT) / BIN_WIDTH) + 1
BIN_LOGITS: Array = np.linspace(LOWEST_LOGIT, HIGHEST_LOGIT, BINS)

INTERCEPT_SPREAD = 1.0
"""Prior standard deviation of the intercept: odds of being right off by a factor e."""

SLOPE_SPREAD = 0.5
"""Prior standard deviation of the slope's logarithm: log odds off by a factor of 1.6."""

DRAWS = 500
"""Curves kept of the posterior; every calibration has as many, so that versions can be added up."""

GRID = 41
REFINEMENTS = 6
REACH = 4.5
"""How many standard deviations of the posterior its grid spans, to either side."""


@dataclass(frozen=True, eq=False)
class ConfidenceCalibration:
    """The chance of being right by confidence: equally likely curves, each of shape (draws,).

    ``rows`` and ``errors`` count the out-of-fold predictions that it was learnt from; without any
    it takes confidences at their word.

    Raises:
        ValueError: there are not `DRAWS` curves.
    """

    intercepts: Array
    slopes: Array
    rows: int
    errors: int

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.intercepts.shape != (DRAWS,) or self.slopes.shape != (DRAWS,):
            raise ValueError(f"a calibration has {DRAWS} curves")

    @property
    def is_learnt(self) -> bool:
        """Whether it rests on any out-of-fold prediction."""
        return self.rows > 0

    def chances(self) -> Array:
        """The chance of being right in each confidence bin, by each curve: (draws, bins)."""
        odds = self.intercepts[:, None] + self.slopes[:, None] * BIN_LOGITS
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * odds)))

    def predictive(self) -> "ConfidenceCalibration":
        """The predictive distribution for one more model of the same kind: twice the variance.

        The model that serves is fitted on all rows and is none of those that the folds left. How
        its own curve deviates from theirs is taken to be as uncertain as theirs is (their variances
        add up), which is what covers its windows (``benchmarks/estimation``).
        """
        logarithms = np.log(self.slopes)
        return ConfidenceCalibration(
            _spread_out(self.intercepts), np.exp(_spread_out(logarithms)), self.rows, self.errors
        )

    def save(self, folder: Path) -> None:
        """Write the calibration into the version `folder`."""
        document = {
            "method": "posterior draws of intercept + slope * logit(confidence)",
            "rows": self.rows,
            "errors": self.errors,
            "intercepts": np.round(self.intercepts, 6).tolist(),
            "slopes": np.round(self.slopes, 6).tolist(),
        }
        (folder / CALIBRATION_FILE).write_text(json.dumps(document), encoding="utf-8")


IDENTITY_CALIBRATION = ConfidenceCalibration(np.zeros(DRAWS), np.ones(DRAWS), rows=0, errors=0)
"""Confidences taken for chances, for a version that was packaged without a calibration."""


def load_calibration(folder: Path) -> ConfidenceCalibration:
    """The calibration of the version `folder`, `IDENTITY_CALIBRATION` if it has none.

    Raises:
        UserError: its file is damaged.
    """
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return IDENTITY_CALIBRATION
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return ConfidenceCalibration(
            np.array(document["intercepts"], dtype=float),
            np.array(document["slopes"], dtype=float),
            int(document["rows"]),
            int(document["errors"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The calibration in {folder} is damaged ({error}); export the version again."
        ) from None


def confidence_bins(confidence: Array) -> npt.NDArray[np.intp]:
    """The bin of each of `confidence` in [0, 1], of the same shape."""
    with np.errstate(divide="ignore"):
        logits = np.log(confidence) - np.log1p(-confidence)
    within = np.clip(logits, LOWEST_LOGIT, HIGHEST_LOGIT)
    return np.asarray(np.rint((within - LOWEST_LOGIT) / BIN_WIDTH), dtype=np.intp)


def fit_calibration(confidence: Array, right: npt.NDArray[np.bool_]) -> ConfidenceCalibration:
    """The calibration that out-of-fold predictions teach, by `confidence` and whether `right`.

    Both have shape (rows,). The posterior is exact but for the grid it is evaluated on, which is
    laid anew around its mean and spread.
    """
    bins = confidence_bins(confidence)
    hits = np.bincount(bins[right], minlength=BINS)
    misses = np.bincount(bins[~right], minlength=BINS)
    steps = np.linspace(-REACH, REACH, GRID)
    centre, spread = np.zeros(2), np.array([INTERCEPT_SPREAD, SLOPE_SPREAD])
    for _ in range(REFINEMENTS):
        grid = (centre + spread * np.stack(np.meshgrid(steps, steps), axis=-1)).reshape(-1, 2)
        weights = _posterior(grid, hits, misses)
        centre = weights @ grid
        spread = np.sqrt(weights @ (grid - centre) ** 2)
    # Evenly spaced along the cumulated weights: as good as random draws, and always the same.
    chosen = np.searchsorted(np.cumsum(weights), (np.arange(DRAWS) + 0.5) / DRAWS)
    intercepts, logarithms = grid[chosen].T
    return ConfidenceCalibration(
        intercepts, np.exp(logarithms), rows=right.size, errors=int((~right).sum())
    )


def _spread_out(draws: Array) -> Array:
    """The `draws` with twice their variance, and their mean."""
    return np.asarray(draws.mean() + np.sqrt(2) * (draws - draws.mean()))


def _posterior(grid: Array, hits: npt.NDArray[np.int64], misses: npt.NDArray[np.int64]) -> Array:
    """Weights, summing to 1, of the (intercept, logarithm of the slope) in the rows of `grid`."""
    seen = hits + misses > 0
    odds = grid[:, :1] + np.exp(grid[:, 1:]) * BIN_LOGITS[seen]
    prior = ((grid / [INTERCEPT_SPREAD, SLOPE_SPREAD]) ** 2).sum(axis=1) / 2
    logarithm = -np.logaddexp(0, -odds) @ (hits + misses)[seen] - odds @ misses[seen] - prior
    weights = np.exp(logarithm - logarithm.max())
    return np.asarray(weights / weights.sum())
