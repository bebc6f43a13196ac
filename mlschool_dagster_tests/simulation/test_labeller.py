"""Labellers label every capture once, with the truth as often as their quality says."""

from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster.simulation.labeller import Labeller, label_captures
from mlschool_dagster.simulation.traffic import TrafficConfig, simulate
from mlschool_dagster.storage import LocalLocation
from mlschool_dagster_tests.simulation.samples import FRAME, SPEC, Endpoint


def populated(folder: Path, samples: int) -> tuple[Endpoint, dict[str, str]]:
    endpoint, logs = Endpoint(folder), LocalLocation(folder / "ground_truth")
    config = TrafficConfig(samples=samples, batch_size=100)
    with GroundTruthLog(logs / "run") as log:
        simulate(FRAME, SPEC, endpoint.invoke, config, lambda _: None, log.append)
    return endpoint, read_ground_truth(logs)


def labels_of(endpoint: Endpoint) -> dict[str, str]:
    labels: dict[str, str] = {}
    for window in endpoint.store.windows():
        newest = endpoint.store.read_labels(window)
        labels.update(zip(newest["event_id"], newest["label"], strict=True))
    return labels


def test_a_perfect_labeller_gives_the_truth(tmp_path: Path) -> None:
    endpoint, ground_truth = populated(tmp_path, 150)
    summary = label_captures(endpoint.store, ground_truth, SPEC, [Labeller(quality=1)])
    assert (summary.labelled, summary.from_log, summary.guessed) == (150, 150, 0)
    assert labels_of(endpoint) == ground_truth


def test_labelling_again_finds_nothing_left(tmp_path: Path) -> None:
    endpoint, ground_truth = populated(tmp_path, 50)
    label_captures(endpoint.store, ground_truth, SPEC)
    before = labels_of(endpoint)
    assert label_captures(endpoint.store, ground_truth, SPEC, seed=7).labelled == 0
    assert labels_of(endpoint) == before


def test_an_expert_of_quality_errs_as_often_as_said(tmp_path: Path) -> None:
    endpoint, ground_truth = populated(tmp_path, 2000)
    summary = label_captures(endpoint.store, ground_truth, SPEC, [Labeller(quality=0.8)])
    truths = ground_truth
    wrong = sum(truths[event] != label for event, label in labels_of(endpoint).items())
    assert 0.16 < summary.guessed / 2000 < 0.24
    assert 0.10 < wrong / 2000 < 0.17


def test_captures_that_were_not_simulated_are_labelled_by_prediction(tmp_path: Path) -> None:
    endpoint, _ = populated(tmp_path, 50)
    predictions = {c.event_id: c.prediction for c in endpoint.store.unlabelled()}
    summary = label_captures(endpoint.store, {}, SPEC, [Labeller(quality=1)])
    assert (summary.from_log, summary.from_predictions) == (0, 50)
    assert labels_of(endpoint) == predictions


@pytest.mark.parametrize("quality", [-0.1, 1.1])
def test_a_senseless_quality_is_refused(quality: float) -> None:
    with pytest.raises(UserError, match="quality"):
        Labeller(quality=quality)


def test_each_labeller_labels_under_a_name_and_a_liar_never_gives_the_truth(tmp_path: Path) -> None:
    endpoint, ground_truth = populated(tmp_path, 100)
    labellers = [Labeller("honest", quality=1), Labeller("liar", quality=1, lies=True)]
    label_captures(endpoint.store, ground_truth, SPEC, labellers)
    (window,) = endpoint.store.windows()
    labels, truths = endpoint.store.read_labels(window), ground_truth
    right = labels["label"] == labels["event_id"].map(truths)
    assert set(labels["source"]) == {"honest", "liar"}
    assert (right == (labels["source"] == "honest")).all()


def test_what_came_later_is_left_for_later(tmp_path: Path) -> None:
    endpoint, ground_truth = populated(tmp_path, 50)
    (window,) = endpoint.store.windows()
    early = label_captures(endpoint.store, ground_truth, SPEC, until=window.start)
    late = label_captures(endpoint.store, ground_truth, SPEC, until=window.end)
    assert (early.labelled, late.labelled) == (0, 50)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with GroundTruthLog(LocalLocation(tmp_path / "run")) as log:
        log.append({"a": "Adelie"})
    (file,) = (tmp_path / "run").glob("*.jsonl")
    with file.open("a") as lines:
        lines.write('{"event_id": "b", "tr')
    with pytest.raises(UserError, match="Line 2"):
        read_ground_truth(LocalLocation(tmp_path))


def write(folder: Path, writer: int) -> None:
    with GroundTruthLog(LocalLocation(folder)) as log:
        for entry in range(200):
            log.append({f"{writer}-{entry}-{i}": "Gentoo" for i in range(20)})


def test_several_writers_share_one_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = [get_context("spawn").Process(target=write, args=(run, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(read_ground_truth(LocalLocation(tmp_path))) == 3 * 200 * 20


def test_what_was_sent_before_an_error_is_logged(tmp_path: Path) -> None:
    with suppress(ValueError), GroundTruthLog(LocalLocation(tmp_path / "run")) as log:
        log.append({"a": "Adelie"})
        raise ValueError
    assert read_ground_truth(LocalLocation(tmp_path)) == {"a": "Adelie"}
