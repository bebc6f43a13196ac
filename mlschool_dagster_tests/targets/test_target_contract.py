"""What every target promises, wherever its endpoint lives."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mlschool_dagster.capture.records import utc_now
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.targets.base import EndpointTarget
from mlschool_dagster.targets.local import LocalTarget
from mlschool_dagster_tests.serving.server import free_port, release, store_uri
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model


def local(home: Path) -> EndpointTarget:
    return LocalTarget(home, store_uri(home), "penguins", port=free_port())


@pytest.fixture(params=[local])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EndpointTarget]:
    make: Callable[[Path], EndpointTarget] = request.param
    target = make(tmp_path)
    yield target
    target.stop()


def deploy(target: EndpointTarget, home: Path, version: str) -> list[str]:
    steps: list[str] = []
    target.deploy(version, release(home, version).folder, steps.append)
    return steps


def test_a_deployed_version_serves(target: EndpointTarget, tmp_path: Path) -> None:
    before = utc_now()
    steps = deploy(target, tmp_path, "1")
    status = target.status()
    assert status is not None
    assert (status.name, status.version) == ("penguins", "1")
    assert status.url.startswith("http")
    assert before - timedelta(seconds=1) < status.since < utc_now() + timedelta(seconds=1)
    assert len(steps) >= 2
    assert all(step.endswith(".") for step in steps)


def test_it_answers_each_row_in_order(target: EndpointTarget, tmp_path: Path) -> None:
    deploy(target, tmp_path, "1")
    rows = [{**ROW, "body_mass_g": mass} for mass in (3000, 4500, None)]
    answers = target.invoke(rows, "three")
    assert [answer.event_id for answer in answers] == ["three-0", "three-1", "three-2"]
    for answer, shares in zip(answers, tiny_model(1).probabilities(rows), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(list(shares))
        assert answer.probabilities[answer.prediction] == answer.confidence == max(shares)
        assert answer.model_version == "1"


def test_refused_rows_come_back_with_their_faults(target: EndpointTarget, tmp_path: Path) -> None:
    deploy(target, tmp_path, "1")
    with pytest.raises(RefusedError) as refused:
        target.invoke([{**ROW, "body_mass_g": -1}])
    assert [fault["column"] for fault in refused.value.faults] == ["body_mass_g"]


def test_an_inference_id_with_other_rows_is_refused(target: EndpointTarget, tmp_path: Path) -> None:
    deploy(target, tmp_path, "1")
    assert target.invoke([ROW], "once") == target.invoke([ROW], "once")
    with pytest.raises(RefusedError):
        target.invoke([{**ROW, "sex": None}], "once")


def test_nothing_serves_before_a_deployment_and_after_a_stop(
    target: EndpointTarget, tmp_path: Path
) -> None:
    target.stop()
    assert target.status() is None
    with pytest.raises(UserError, match="materialize endpoint"):
        target.invoke([ROW])
    deploy(target, tmp_path, "1")
    target.stop()
    assert target.status() is None
    with pytest.raises(UserError, match="materialize endpoint"):
        target.invoke([ROW])
    deploy(target, tmp_path, "2")
    assert target.invoke([ROW])[0].model_version == "2"


def test_the_version_before_goes_on_if_a_deployment_fails(
    target: EndpointTarget, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    damaged = release(tmp_path, "2").folder
    (damaged / "compiled.npz").write_bytes(b"damaged")
    for folder in (damaged, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="compiled model"):
            target.deploy("2", folder, lambda step: None)
    assert target.invoke([ROW])[0].model_version == "1"
    deploy(target, tmp_path, "3")
    assert target.invoke([ROW])[0].model_version == "3"


def test_no_request_fails_while_versions_are_swapped(
    target: EndpointTarget, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    seen: list[str] = []
    failures: list[Exception] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                seen.append(target.invoke([ROW])[0].model_version)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in ("2", "3", "1", "2", "3"):
        deploy(target, tmp_path, version)
        assert target.invoke([ROW])[0].model_version == version
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(seen) == {"1", "2", "3"}
