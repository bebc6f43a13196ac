"""What the peers share: a row as pydantic checks it, and the platform's own arithmetic.

The folder in the environment variable PEER_MODEL holds the arrays of the version that is served,
and in ``code`` copies of the modules that predict with them.
"""

import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

FOLDER = Path(os.environ["PEER_MODEL"])
sys.path.insert(0, str(FOLDER))

from code_of_version.compiled import CompiledModel  # noqa: E402


class Row(BaseModel):
    """One penguin, within the ranges of the data spec."""

    island: Literal["Biscoe", "Dream", "Torgersen"]
    culmen_length_mm: float | None = Field(None, ge=15, le=90)
    culmen_depth_mm: float | None = Field(None, ge=5, le=40)
    flipper_length_mm: float | None = Field(None, ge=100, le=300)
    body_mass_g: float | None = Field(None, ge=1000, le=10000)
    sex: Literal["FEMALE", "MALE"] | None = None


class Records(BaseModel):
    """Rows in one form of MLflow's scoring protocol."""

    dataframe_records: list[Row]


class Network:
    """The model of the version in `FOLDER`."""

    def __init__(self) -> None:
        self._model = CompiledModel.load(FOLDER)
        self._classes = self._model.spec.target.classes

    def predict(self, rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
        """Prediction and confidence for each of `rows`."""
        probabilities = self._model.probabilities([row.model_dump() for row in rows]).tolist()
        answers = [
            {
                "prediction": self._classes[shares.index(max(shares))],
                "confidence": max(shares),
                "probabilities": dict(zip(self._classes, shares, strict=True)),
            }
            for shares in probabilities
        ]
        return {"predictions": answers}
