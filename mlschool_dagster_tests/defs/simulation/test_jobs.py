"""The simulation jobs: traffic with a summary of the answers, labels of a chosen quality."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlschool_dagster.capture.records import Capture
from mlschool_dagster.definitions import platform_files
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster_tests.capture.samples import WINDOW, capture
from mlschool_dagster_tests.platform import Platform, sentence
from mlschool_dagster_tests.serving.server import Server, free_port, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    home = tmp_path / "server"
    home.mkdir()
    with running_server(home) as server:
        yield server


def observed(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What the run says of the live traffic."""
    (event,) = result.get_asset_observation_events()
    metadata = event.asset_observation_data.asset_observation.metadata
    return {name: value.value for name, value in metadata.items()}


def clients(server: Server, **settings: Any) -> dict[str, Any]:
    return {"send_traffic": {"url": str(server.client.base_url), "samples": 40, **settings}}


def test_clients_without_an_endpoint_say_so_in_one_sentence(platform: Platform) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = platform.run("traffic_job", {"send_traffic": {"url": url}})
    assert (
        sentence(result)
        == f"The endpoint penguins at {url} cannot be reached; materialize endpoint."
    )


def test_every_row_answered_is_captured_and_its_truth_remembered(
    platform: Platform, server: Server
) -> None:
    seen = observed(platform.run("traffic_job", clients(server)))
    captured = {capture.event_id for capture in server.captures()}
    assert (seen["sent"], seen["accepted"], seen["refused"]) == (40, 40, 0)
    assert seen["drift"].startswith("shift of body_mass_g")
    assert len(captured) == 40
    assert ground_truth(platform).keys() == captured


def test_refused_rows_are_counted_with_their_reasons(platform: Platform, server: Server) -> None:
    seen = observed(
        platform.run("traffic_job", clients(server, drift="NEW_CATEGORY", batch_size=1))
    )
    assert 0 < seen["refused"] == 40 - seen["accepted"] < 40
    (refusal,) = [row.data for row in seen["refusals"].records]
    assert refusal["faults"] == seen["refused"]
    assert refusal["reason"].startswith("island")
    assert len(server.captures()) == seen["accepted"]


def test_a_drift_that_cannot_be_made_is_reported_in_one_sentence(
    platform: Platform, server: Server
) -> None:
    result = platform.run("traffic_job", clients(server, column="island"))
    assert "needs a numeric column, which 'island' is not" in sentence(result)


@pytest.fixture
def captures(platform: Platform) -> list[Capture]:
    """Captures predicted as one class, of which the ground-truth log says that they are another."""
    captures = [capture(str(number)) for number in range(40)]
    with platform.store() as store:
        store.append(captures)
    with GroundTruthLog(platform_files(platform.settings).ground_truth("run")) as log:
        log.append({capture.event_id: "Adelie" for capture in captures})
    return captures


def ground_truth(platform: Platform) -> dict[str, str]:
    return read_ground_truth(platform_files(platform.settings).ground_truths)


def labels(platform: Platform) -> list[str]:
    with platform.store() as store:
        return list(store.read_labels(WINDOW)["label"])


def test_experts_of_quality_1_tell_the_truth(platform: Platform, captures: list[Capture]) -> None:
    assert platform.run("labeling_job", {"label_traffic": {"quality": 1.0}}).success
    assert labels(platform) == ["Adelie"] * len(captures)


def test_experts_of_quality_0_guess(platform: Platform, captures: list[Capture]) -> None:
    assert platform.run("labeling_job", {"label_traffic": {"quality": 0.0}}).success
    assert set(labels(platform)) == {"Adelie", "Chinstrap", "Gentoo"}


def test_what_is_labelled_is_not_labelled_again(
    platform: Platform, captures: list[Capture]
) -> None:
    first = observed(platform.run("labeling_job"))
    before = labels(platform)
    second = observed(platform.run("labeling_job", {"label_traffic": {"quality": 0.0}}))
    assert (first["labelled"], second["labelled"]) == (len(captures), 0)
    assert labels(platform) == before
