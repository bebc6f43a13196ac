"""Windows and references made from the real data, without a model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from mlschool_dagster.dataset.spec import DataSpec, load_spec, probability_column

DATA = Path(__file__).parents[2] / "data"
SPEC: DataSpec = load_spec(DATA / "penguins.yaml")
START = datetime(2026, 11, 20, 23, tzinfo=UTC)


def population() -> pd.DataFrame:
    """The 344 rows with predictions that are right in about 98 of 100, and honestly confident."""
    frame = pd.read_csv(DATA / "penguins.csv", na_values="NA", keep_default_na=False)
    rng = np.random.default_rng(7)
    classes = SPEC.target.classes
    confidence = 1 - rng.beta(0.4, 12, len(frame)) / 1.5
    wrong = rng.random(len(frame)) > confidence
    truth = frame[SPEC.target.name].map(list(classes).index).to_numpy()
    answer = np.where(wrong, (truth + 1) % len(classes), truth)
    frame["prediction"] = [classes[index] for index in answer]
    frame["confidence"] = confidence
    for index, label in enumerate(classes):
        others = (1 - confidence) / (len(classes) - 1)
        frame[probability_column(label)] = np.where(answer == index, confidence, others)
    return frame


def resampled(frame: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """`rows` rows of `frame`, drawn with replacement."""
    return frame.sample(rows, replace=True, random_state=seed).reset_index(drop=True)


def as_window(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` as if each row had been captured, one a second."""
    return frame.assign(
        event_id=[f"event-{index}" for index in range(len(frame))],
        captured_at=pd.to_datetime(
            [START + timedelta(seconds=s) for s in range(len(frame))], utc=True
        ),
        endpoint="penguins",
        model_version="3",
        role="primary",
        sampling_share=1.0,
    )


def window(rows: int, seed: int = 0) -> pd.DataFrame:
    """A window without drift."""
    return as_window(resampled(population(), rows, seed))


def shifted(frame: pd.DataFrame, column: str, seed: int = 0) -> pd.DataFrame:
    """`frame` with uniform(1, 3) standard deviations added to each value of `column`."""
    rng = np.random.default_rng(seed)
    spread = population()[column].std()
    return frame.assign(**{column: frame[column] + rng.uniform(1, 3, len(frame)) * spread})
