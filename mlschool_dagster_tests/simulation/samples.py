"""An endpoint of real parts in this process: validation, model and capture store, without HTTP."""

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import orjson
import pandas as pd

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.capture.sqlite import SqliteStore
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.errors import RefusedError
from mlschool_dagster.serving.validation import InvalidRequestError, Validator
from mlschool_dagster.simulation.traffic import Row
from mlschool_dagster_tests.serving.tiny_model import DATA, tiny_model

SPEC = load_spec(DATA / "penguins.yaml")
FRAME = pd.read_csv(DATA / "penguins.csv", na_values="NA", keep_default_na=False)


class Endpoint:
    """Refuses, predicts and captures as the server does."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder / "captures.db")
        self.batches: list[int] = []
        self._model = tiny_model()
        self._validator = Validator(SPEC)

    def invoke(self, rows: Sequence[Row]) -> list[Capture]:
        self.batches.append(len(rows))
        try:
            body = orjson.dumps({"inputs": rows})
            valid = self._validator.accept(body, "application/json").rows
        except InvalidRequestError as error:
            raise RefusedError(error.message, error.faults) from None
        captures = []
        for row, probabilities in zip(valid, self._model.probabilities(valid), strict=True):
            by_class = dict(zip(SPEC.target.classes, map(float, probabilities), strict=True))
            prediction = max(by_class, key=by_class.__getitem__)
            captures.append(
                Capture(
                    uuid4().hex,
                    utc_now(),
                    "penguins",
                    "1",
                    row,
                    prediction,
                    by_class[prediction],
                    by_class,
                )
            )
        self.store.append(captures)
        return captures
