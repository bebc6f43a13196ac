"""Whatever the endpoint accepts can be stored, replayed and reported, however odd it is."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Capture, Role
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import CategoricalColumn, NumericColumn, probability_column
from mlschool_dagster.monitoring.drift import drift
from mlschool_dagster.monitoring.quality import quality
from mlschool_dagster.monitoring.snapshot import captures_table
from mlschool_dagster.serving.validation import InvalidRequestError, Row, Validator
from mlschool_dagster_tests.serving.test_hostile_bodies import JSON
from mlschool_dagster_tests.serving.tiny_model import SPEC, tiny_model

OPEN = replace(
    SPEC,
    columns=tuple(
        replace(column, nullable=True, allow_unknown=True)
        if isinstance(column, CategoricalColumn)
        else NumericColumn(column.name, "As wide as can be", -1e15, 1e15, nullable=True)
        for column in SPEC.columns
    ),
)
VALIDATOR = Validator(OPEN)
MODEL = replace(tiny_model(), spec=OPEN)
START = datetime(2026, 1, 1, tzinfo=UTC)
HOURS = count()

NUMBERS = (
    st.integers(-(10**15), 10**15)
    | st.floats(-1e15, 1e15)
    | st.sampled_from([-0.0, 5e-324, 1e-300, 39.10000000000001, 2**49 + 0.1, "1e3", " 7 ", "NA"])
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["$10_to_$20", "{}", "<b>", "\r\n", "\u202e", "\U0001f427", "None", "\ud800", "\0", "Biscoe "]
)
VALUES = {
    column.name: (NUMBERS if isinstance(column, NumericColumn) else TEXTS) | st.none()
    for column in OPEN.columns
}
RECORDS = st.fixed_dictionaries({}, optional=VALUES) | st.fixed_dictionaries(
    {name: values | JSON for name, values in VALUES.items()}, optional={"note": JSON}
)
FORMS = st.sampled_from(["inputs", "split", "CSV"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaptureStore]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'captures.db'}")
    yield store
    store.close()


def reference() -> pd.DataFrame:
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            column.name: random.normal(size=60)
            if isinstance(column, NumericColumn)
            else random.choice(column.categories, 60)
            for column in OPEN.columns
        }
    )
    shares = random.dirichlet(np.ones(len(OPEN.target.classes)), 60)
    frame["prediction"] = [OPEN.target.classes[i] for i in shares.argmax(axis=1)]
    frame["confidence"] = shares.max(axis=1)
    for position, label in enumerate(OPEN.target.classes):
        frame[probability_column(label)] = shares[:, position]
    return frame


REFERENCE = reference()


def accepted(records: list[dict[str, Any]], form: str) -> list[Row]:
    """What is accepted of `records` sent in `form`, in part where all cannot be."""
    names = list(dict.fromkeys(name for record in records for name in record))
    # As pandas has it: what is not there is NaN.
    table = [[record.get(name, math.nan) for name in names] for record in records]
    if form == "CSV":
        text = io.StringIO()
        csv.writer(text).writerows([names, *table])
        body = text.getvalue().encode("utf-8", "replace")
    elif form == "split":
        body = json.dumps({"dataframe_split": {"columns": names, "data": table}}).encode()
    else:
        body = json.dumps({"inputs": records}).encode()
    media_type = "text/csv" if form == "CSV" else "application/json"
    try:
        return VALIDATOR.accept(body, media_type, partial=True).rows
    except InvalidRequestError:
        return []


def captures_of(rows: list[Row], window: Window) -> list[Capture]:
    classes = OPEN.target.classes
    return [
        Capture(
            f"{window.key}-{position}",
            window.start + timedelta(seconds=position),
            "penguins",
            "1",
            row,
            classes[int(np.argmax(shares))],
            max(shares),
            dict(zip(classes, shares, strict=True)),
            Role.PRIMARY,
            1.0,
        )
        for position, (row, shares) in enumerate(
            zip(rows, MODEL.probabilities(rows).tolist(), strict=True)
        )
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, min_size=1, max_size=12), form=FORMS)
@example(records=[{"island": "$10_to_$20", "sex": "{_}"}] * 40, form="inputs")
@example(records=[{"body_mass_g": 1e15}, {"body_mass_g": -1e15}] * 20, form="split")
def test_it_can_be_stored_replayed_and_reported(
    records: list[dict[str, Any]], form: str, store: CaptureStore
) -> None:
    rows = accepted(records, form)
    body = json.dumps({"dataframe_records": rows}).encode()
    if not rows:
        return
    assert VALIDATOR.accept(body, "application/json").rows == rows

    window = Window.of(START + timedelta(hours=next(HOURS)))
    captures = captures_of(rows, window)
    assert all(np.isfinite(capture.confidence) for capture in captures)
    store.append(captures)
    kept = store.read(window)
    assert kept["inputs"].tolist() == rows
    assert np.array_equal(MODEL.probabilities(kept["inputs"].tolist()), MODEL.probabilities(rows))

    (columns,) = store.stream_columns(window)
    current = captures_table(columns, OPEN).to_pandas()
    for column in OPEN.columns:
        assert current[column.name].isna().tolist() == [row[column.name] is None for row in rows]
    with np.errstate(all="ignore"):
        result = [
            quality([current], REFERENCE, OPEN).to_dict(),
            drift(current, REFERENCE, OPEN).to_dict(),
        ]
    json.dumps(result, allow_nan=False).encode()
