"""Retraining: what a challenger is trained on, and whether it is better than the champion."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from mlschool_dagster.capture.records import Capture, Label
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.defs.common import ROLLOUT_TAG
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster.simulation.traffic import Drift, TrafficConfig, drifted
from mlschool_dagster_tests.platform import (
    DATA,
    SPEC,
    WINDOW,
    Platform,
    checks,
    materialized,
    metadata,
    run_config,
    sentence,
    undecided,
)

BASE = read_data(str(DATA), SPEC)
ROLLOUT = "2026-11-20-23:00"


@pytest.fixture
def champion(trained_platform: Platform) -> Platform:
    """A platform whose version 1 is the champion."""
    trained_platform.registry().promote("1")
    return trained_platform


def model(platform: Platform, version: str) -> CompiledModel:
    folder = platform.registry().fetch(version, platform.settings.home / "versions")
    return CompiledModel.load(folder)


def live_through(
    platform: Platform, traffic: TrafficConfig, sources: Sequence[str] = ("labeller",)
) -> None:
    """Captures of version 1 in one window, all labelled with the truth, by `sources` in turn."""
    world = drifted(BASE, SPEC, traffic)
    inputs: list[dict[str, Any]] = [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in world.inputs.to_dict("records")
    ]
    captures = []
    for number, probabilities in enumerate(model(platform, "1").probabilities(inputs)):
        by_class = dict(zip(SPEC.target.classes, map(float, probabilities), strict=True))
        prediction = max(by_class, key=by_class.__getitem__)
        captures.append(
            Capture(
                event_id=f"event-{number}",
                captured_at=WINDOW.start + timedelta(seconds=number),
                endpoint=SPEC.name,
                model_version="1",
                inputs=inputs[number],
                prediction=prediction,
                confidence=by_class[prediction],
                probabilities=by_class,
            )
        )
    truths = zip(captures, world.truth, strict=True)
    labels = [
        Label(capture.event_id, truth, utc_now(), sources[number % len(sources)])
        for number, (capture, truth) in enumerate(truths)
    ]
    with platform.store() as store:
        store.append(captures)
        store.append_labels(labels)


def retrain(
    platform: Platform, tags: Mapping[str, str] = MappingProxyType({})
) -> dg.ExecuteInProcessResult:
    return platform.definitions.resolve_job_def("retraining_job").execute_in_process(
        run_config=run_config({"training_data": {"captures": "labelled"}}),
        instance=platform.instance,
        tags=dict(tags),
        raise_on_error=False,
    )


def test_a_challenger_that_learnt_the_drift_is_better_and_the_ledger_says_so(
    champion: Platform,
) -> None:
    live_through(champion, TrafficConfig(samples=500, drift=Drift.SHIFT, column="body_mass_g"))
    ledger = open_ledger(champion.settings.history)
    requested = Entry(ROLLOUT, utc_now(), Step.REQUESTED, "", "test", "drift", {"champion": "1"})
    ledger.append(requested)
    result = retrain(champion, {ROLLOUT_TAG: ROLLOUT})
    assert result.success
    check = checks(result)["challenger_is_better"]
    assert check.passed
    assert "The challenger is better than the champion: accuracy " in str(check.description)
    shown = metadata(result, "challenger_comparison")
    assert shown["challenger_accuracy"] > shown["champion_accuracy"]
    assert 0 < shown["difference_lower"] < shown["difference"] < shown["difference_upper"]
    assert shown["mcnemar_p_value"] < 0.05

    compared = ledger.entries(ROLLOUT)[-1]
    assert (compared.step, compared.version) == (Step.COMPARED, "2")
    assert compared.details["better"] is True
    assert compared.details["champion"] == "1"

    version = champion.registry().resolve("2")
    assert version.tags["rollout"] == ROLLOUT
    assert version.tags["comparison"] == compared.reason
    assert version.tags["label_sources"] == "labeller"
    assert version.tags["held_out"].startswith(f"{shown['held_out_rows']:.0f} labelled captures")

    data = metadata(result, "training_data")
    training, held_out = champion.dataset("training_data"), champion.dataset("held_out")
    assert data["base_rows"] + data["captured_rows"] == len(training)
    assert data["held_out_rows"] == len(held_out) == shown["held_out_rows"]
    assert 0.2 < len(held_out) / (len(held_out) + data["captured_rows"]) < 0.4
    assert training.merge(held_out, on=SPEC.input_names).empty


def test_training_without_captures_trains_on_the_base_data_alone(
    trained_platform: Platform,
) -> None:
    base, training = map(trained_platform.dataset, ("raw_penguins", "training_data"))
    pd.testing.assert_frame_equal(base, training)
    assert trained_platform.dataset("held_out").empty
    tags = trained_platform.registry().resolve("1").tags
    assert tags["training_captures"] == "none"


def test_labels_that_contradict_the_base_data_need_a_second_source(champion: Platform) -> None:
    traffic = TrafficConfig(samples=400, drift=Drift.CONCEPT, share=1.0)
    live_through(champion, traffic)
    refused = retrain(champion)
    assert "no second source confirms them" in sentence(refused)
    assert not checks(refused)["ground_truth"].passed
    assert materialized(refused) == {"raw_penguins"}


def test_a_new_truth_that_two_sources_tell_is_learnt(champion: Platform) -> None:
    traffic = TrafficConfig(samples=400, drift=Drift.CONCEPT, share=1.0)
    live_through(champion, traffic, ("labeller", "laboratory"))
    result = retrain(champion)
    found = checks(result)
    assert "The truth has changed" in str(found["ground_truth"].description)
    assert found["challenger_is_better"].passed
    assert metadata(result, "training_data")["base_rows"] == 0


def test_a_poisoned_source_is_named_and_nothing_is_learnt_from_it(champion: Platform) -> None:
    live_through(champion, TrafficConfig(samples=300), ("labeller", "laboratory", "stranger"))
    poison = {name: SPEC.target.classes[n - 1] for n, name in enumerate(SPEC.target.classes)}
    with champion.store() as store:
        labelled = store.read_labels(WINDOW)
        strange = labelled[labelled["source"] == "stranger"]
        store.append_labels(
            Label(event_id, poison[label], utc_now(), "stranger")
            for event_id, label in zip(strange["event_id"], strange["label"], strict=True)
        )
    result = retrain(champion)
    assert "Labels of stranger are left out" in str(checks(result)["ground_truth"].description)
    assert metadata(result, "training_data")["distrusted"] == len(strange)
    training = champion.dataset("training_data")
    known = BASE.drop_duplicates(SPEC.input_names)
    both = training.merge(known, on=SPEC.input_names, suffixes=("", "_base"))
    assert np.array_equal(both[SPEC.target.name], both[f"{SPEC.target.name}_base"])
    assert not checks(result)["challenger_is_better"].passed


def test_without_held_out_captures_nothing_is_claimed(champion: Platform) -> None:
    result = retrain(champion)
    assert result.success
    check = checks(result)["challenger_is_better"]
    assert not check.passed
    assert "challenger_is_better" in undecided(result)
    assert "0 labelled captures were put aside, 50 are needed" in str(check.description)
