"""Clients send what was asked for, count what became of it, and remember the truth."""

import re
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.validation import Validator
from mlschool_dagster.simulation.traffic import (
    NEW_CATEGORY,
    Drift,
    TrafficConfig,
    TrafficSummary,
    drifted,
    simulate,
)
from mlschool_dagster_tests.simulation.samples import FRAME, SPEC, Endpoint
from mlschool_dagster_tests.worlds import WORLDS, World


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return Endpoint(tmp_path)


def send(
    endpoint: Endpoint, config: TrafficConfig
) -> tuple[TrafficSummary, dict[str, str], list[str]]:
    truths: dict[str, str] = {}
    reported: list[str] = []
    summary = simulate(FRAME, SPEC, endpoint.invoke, config, reported.append, truths.update)
    return summary, truths, reported


def test_every_row_is_sent_in_batches_and_its_truth_remembered(endpoint: Endpoint) -> None:
    summary, truths, reported = send(endpoint, TrafficConfig(samples=95, batch_size=10))
    captures = list(endpoint.store.unlabelled())
    assert (summary.sent, summary.accepted, summary.refused) == (95, 95, 0)
    assert endpoint.batches == [10] * 9 + [5]
    assert {capture.event_id for capture in captures} == set(truths)
    assert set(truths.values()) <= set(SPEC.target.classes)
    assert reported[-1] == "95 of 95 rows sent, 0 refused"
    assert len(reported) <= 11


def test_equal_seeds_send_equal_rows(tmp_path: Path) -> None:
    sent = []
    for name in ("a", "b"):
        endpoint = Endpoint(tmp_path / name)
        send(endpoint, TrafficConfig(samples=30, drift=Drift.SHIFT))
        sent.append([capture.inputs for capture in endpoint.store.unlabelled()])
    assert sent[0] == sent[1]


def test_the_default_shift_moves_body_mass_by_one_to_three_deviations(endpoint: Endpoint) -> None:
    send(endpoint, TrafficConfig(samples=300, drift=Drift.SHIFT))
    masses = [float(c.inputs["body_mass_g"] or 0) for c in endpoint.store.unlabelled()]
    moved = sum(masses) / len(masses) - FRAME["body_mass_g"].mean()
    assert 1.7 < moved / FRAME["body_mass_g"].std() < 2.3


def test_covariate_shift_keeps_rows_and_prefers_large_values(endpoint: Endpoint) -> None:
    config = TrafficConfig(samples=300, drift=Drift.COVARIATE, column="flipper_length_mm")
    send(endpoint, config)
    lengths = [c.inputs["flipper_length_mm"] for c in endpoint.store.unlabelled()]
    known = [float(x) for x in lengths if x is not None]
    assert set(known) <= set(FRAME["flipper_length_mm"].dropna())
    assert sum(known) / len(known) > FRAME["flipper_length_mm"].mean() + 10


def test_a_new_category_is_refused_and_tallied(endpoint: Endpoint) -> None:
    summary, truths, _ = send(
        endpoint, TrafficConfig(samples=100, drift=Drift.NEW_CATEGORY, share=0.5)
    )
    assert 30 < summary.refused < 70
    assert summary.accepted == 100 - summary.refused == len(truths)
    assert sum(summary.refusals.values()) == summary.refused
    assert all(reason.startswith("island: ") for reason in summary.refusals)
    inputs = [capture.inputs for capture in endpoint.store.unlabelled()]
    assert NEW_CATEGORY not in {row["island"] for row in inputs}


def test_a_refused_batch_counts_with_all_its_rows(endpoint: Endpoint) -> None:
    config = TrafficConfig(samples=50, drift=Drift.NEW_CATEGORY, share=1, batch_size=25)
    summary, _, _ = send(endpoint, config)
    assert (summary.accepted, summary.refused) == (0, 50)


@pytest.mark.parametrize("column", ["sex", "culmen_depth_mm"])
def test_values_are_left_out(endpoint: Endpoint, column: str) -> None:
    send(endpoint, TrafficConfig(samples=200, drift=Drift.MISSING, column=column, share=0.5))
    missing = [c.inputs[column] is None for c in endpoint.store.unlabelled()]
    assert 0.35 < sum(missing) / len(missing) < 0.65


def test_a_changed_concept_leaves_the_inputs_alone(tmp_path: Path) -> None:
    def played(name: str, drift: Drift) -> tuple[list[object], list[str]]:
        endpoint = Endpoint(tmp_path / name)
        _, truths, _ = send(endpoint, TrafficConfig(samples=100, drift=drift, share=1))
        return [c.inputs for c in endpoint.store.unlabelled()], list(truths.values())

    inputs, truths = played("before", Drift.NONE)
    same_inputs, other_truths = played("after", Drift.CONCEPT)
    assert inputs == same_inputs
    assert all(a != b for a, b in zip(truths, other_truths, strict=True))


def test_an_endpoint_that_is_unavailable_ends_the_traffic(endpoint: Endpoint) -> None:
    def unavailable(_rows: object) -> list[object]:
        raise UserError("The endpoint is unavailable.")

    with pytest.raises(UserError, match="unavailable"):
        simulate(FRAME, SPEC, unavailable, TrafficConfig(), print, print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("drift", "column"),
    [
        (Drift.SHIFT, "island"),
        (Drift.NEW_CATEGORY, "body_mass_g"),
        (Drift.MISSING, "species"),
        (Drift.COVARIATE, "wingspan"),
    ],
)
def test_a_column_that_cannot_drift_so_is_named(
    endpoint: Endpoint, drift: Drift, column: str
) -> None:
    with pytest.raises(UserError, match=column):
        send(endpoint, TrafficConfig(drift=drift, column=column))


@pytest.mark.parametrize("setting", [{"samples": 0}, {"batch_size": 0}, {"share": 1.5}])
def test_senseless_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        TrafficConfig(**setting)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("drift", Drift)
def test_any_data_drifts_within_its_rules_or_it_is_said_why_not(
    tmp_path: Path, world: World, drift: Drift
) -> None:
    world.write(tmp_path)
    spec = load_spec(tmp_path / "world.yaml")
    frame = read_data(str(tmp_path / "world.csv"), spec)
    config = TrafficConfig(samples=300, drift=drift)
    try:
        result = drifted(frame, spec, config)
    except UserError as refused:
        assert re.fullmatch(r"Drift of .* needs a \w+ column; choose one of: .*\.", str(refused))
        return
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in result.inputs.to_dict("records")
    ]
    accepted = Validator(spec).accept(orjson.dumps({"inputs": rows}), "application/json", True)
    assert bool(accepted.faults) == (drift is Drift.NEW_CATEGORY)
    if drift is Drift.SHIFT and not spec.numeric:
        assert result.description == "none"
