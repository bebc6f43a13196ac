"""What every target promises, wherever its endpoint lives."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment.endpoint import Endpoint, Invoke, Verify, accept
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.serving.desired_state import Deployment, Plan, Release, previous_primary
from mlschool_dagster.serving.server_config import ServerConfig
from mlschool_dagster_tests.serving.server import free_port, release, store_uri, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model


def local(home: Path) -> Endpoint:
    return LocalEndpoint(ServerConfig(home, store_uri(home), "penguins", port=free_port()))


MAKERS: list[Callable[[Path], Endpoint]] = [local]


@pytest.fixture(params=MAKERS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoint]:
    """An endpoint to which nothing was deployed."""
    target: Endpoint = request.param(tmp_path)
    yield target
    target.stop()


@pytest.fixture(scope="module", params=MAKERS)
def serving(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """An endpoint that serves version 1."""
    home = tmp_path_factory.mktemp("home")
    target: Endpoint = request.param(home)
    serve(target, home, "1")
    yield target
    target.stop()


def deploy(target: Endpoint, plan: Plan, verify: Verify = accept) -> list[str]:
    steps: list[str] = []
    target.deploy(plan, "a test", "because", steps.append, verify)
    return steps


def serve(target: Endpoint, home: Path, version: str) -> list[str]:
    return deploy(target, Plan(release(home, version)))


def answering(target: Endpoint) -> str:
    return target.invoke([ROW])[0].model_version


@dataclass
class Traffic:
    """What clients were told: the version of each answer, and what went wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)

    def wait_for_answers(self, more: int) -> None:
        enough = self.answers.total() + more
        wait_for(lambda: self.answers.total() >= enough or self.failures)


@contextmanager
def traffic(target: Endpoint) -> Iterator[Traffic]:
    """Clients that ask without a pause."""
    found = Traffic()
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                found.answers[answering(target)] += 1
            except Exception as error:
                found.failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        done.set()
        for thread in threads:
            thread.join()


def primaries(history: Sequence[Deployment]) -> list[str | None]:
    return [d.plan.primary.version if d.plan.primary else None for d in history]


def test_a_deployed_version_serves(target: Endpoint, tmp_path: Path) -> None:
    before = utc_now()
    steps = serve(target, tmp_path, "1")
    status = target.status()
    assert status is not None
    assert (status.name, status.version) == ("penguins", "1")
    assert (status.canary, status.canary_share, status.shadow) == (None, 0.0, None)
    assert status.url.startswith("http")
    assert before - timedelta(seconds=1) < status.since < utc_now() + timedelta(seconds=1)
    assert len(steps) >= 2
    assert all(step.endswith(".") for step in steps)


def test_it_answers_each_row_in_order(serving: Endpoint) -> None:
    rows = [{**ROW, "body_mass_g": mass} for mass in (3000, 4500, None)]
    answers = serving.invoke(rows, "three")
    assert [answer.event_id for answer in answers] == ["three", "three#1", "three#2"]
    for answer, shares in zip(answers, tiny_model(1).probabilities(rows), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(list(shares))
        assert answer.probabilities[answer.prediction] == answer.confidence == max(shares)
        assert answer.model_version == "1"


def test_refused_rows_come_back_with_their_faults(serving: Endpoint) -> None:
    with pytest.raises(RefusedError) as refused:
        serving.invoke([{**ROW, "body_mass_g": -1}])
    assert [fault["column"] for fault in refused.value.faults] == ["body_mass_g"]


def test_an_inference_id_with_other_rows_is_refused(serving: Endpoint) -> None:
    assert serving.invoke([ROW], "once") == serving.invoke([ROW], "once")
    with pytest.raises(RefusedError):
        serving.invoke([{**ROW, "sex": None}], "once")


def test_nothing_serves_before_a_deployment_and_after_a_stop(
    target: Endpoint, tmp_path: Path
) -> None:
    target.stop()
    assert target.status() is None
    assert target.history() == []
    with pytest.raises(UserError, match="materialize endpoint"):
        target.invoke([ROW])
    serve(target, tmp_path, "1")
    target.stop()
    assert target.status() is None
    with pytest.raises(UserError, match="materialize endpoint"):
        target.invoke([ROW])
    serve(target, tmp_path, "2")
    assert answering(target) == "2"


def test_the_first_version_takes_no_traffic_before_it_is_verified(
    target: Endpoint, tmp_path: Path
) -> None:
    def verify(candidate: Release, invoke: Invoke) -> None:
        assert invoke([ROW])[0].model_version == "1"
        assert target.status() is None
        with pytest.raises(UserError, match="No version serves yet"):
            target.invoke([ROW])

    deploy(target, Plan(release(tmp_path, "1")), verify)
    assert answering(target) == "1"


def test_each_new_version_is_verified_beside_what_serves(target: Endpoint, tmp_path: Path) -> None:
    one, two, three = (release(tmp_path, version) for version in "123")
    verified: list[Release] = []

    def verify(candidate: Release, invoke: Invoke) -> None:
        verified.append(candidate)
        rows = [ROW, {**ROW, "sex": None}]
        expected = tiny_model(int(candidate.version)).probabilities(rows)
        for answer, shares in zip(invoke(rows), expected, strict=True):
            assert answer.model_version == candidate.version
            assert list(answer.probabilities.values()) == pytest.approx(list(shares))
        if candidate != one:
            assert answering(target) == "1"

    deploy(target, Plan(one), verify)
    deploy(target, Plan(one, canary=two, canary_share=1.0, shadow=three), verify)
    assert verified == [one, two, three]
    assert answering(target) == "2"
    deploy(target, Plan(two, shadow=one), verify)
    assert verified == [one, two, three]
    status = target.status()
    assert status is not None
    assert (status.version, status.canary, status.shadow) == ("2", None, "1")


def test_the_version_before_goes_on_if_a_deployment_fails(target: Endpoint, tmp_path: Path) -> None:
    serve(target, tmp_path, "1")
    damaged = release(tmp_path, "2")
    (damaged.folder / "compiled.npz").write_bytes(b"damaged")
    for bad in (damaged, Release("2", tmp_path / "nowhere")):
        with pytest.raises(UserError, match="compiled model"):
            deploy(target, Plan(bad))
    assert answering(target) == "1"
    serve(target, tmp_path, "3")
    assert answering(target) == "3"


def test_a_first_version_that_fails_leaves_nothing_that_serves(
    target: Endpoint, tmp_path: Path
) -> None:
    def verify(candidate: Release, invoke: Invoke) -> None:
        raise UserError("It is wrong.")

    with pytest.raises(UserError, match="It is wrong"):
        deploy(target, Plan(release(tmp_path, "1")), verify)
    assert target.status() is None
    with pytest.raises(UserError):
        target.invoke([ROW])


@pytest.mark.parametrize("fault", [UserError("It is wrong.\nVery."), KeyboardInterrupt()])
def test_a_version_that_is_not_verified_never_answers(
    target: Endpoint, tmp_path: Path, fault: BaseException
) -> None:
    serve(target, tmp_path, "1")

    with traffic(target) as clients:

        def verify(candidate: Release, invoke: Invoke) -> None:
            clients.wait_for_answers(100)
            raise fault

        with pytest.raises(type(fault)):
            deploy(target, Plan(release(tmp_path, "2")), verify)
        clients.wait_for_answers(100)
    assert clients.failures == []
    assert set(clients.answers) == {"1"}
    last = target.history()[-1]
    assert (last.plan.primary, last.candidate) == (release(tmp_path, "1"), None)
    why = str(fault).partition("\n")[0] or "KeyboardInterrupt"
    assert (last.by, last.reason) == ("a test", f"Taken back: {why}")


def test_no_request_fails_while_versions_are_swapped(target: Endpoint, tmp_path: Path) -> None:
    serve(target, tmp_path, "1")
    with traffic(target) as clients:
        for version in ("2", "3", "1", "2", "3"):
            serve(target, tmp_path, version)
            assert answering(target) == version
    assert clients.failures == []
    assert set(clients.answers) == {"1", "2", "3"}


def test_a_canary_answers_its_share(target: Endpoint, tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    share = 0.3
    deploy(target, Plan(one, canary=two, canary_share=share))
    status = target.status()
    assert status is not None
    assert (status.version, status.canary, status.canary_share) == ("1", "2", share)
    with traffic(target) as clients:
        clients.wait_for_answers(500)
    assert clients.failures == []
    asked = clients.answers.total()
    deviation = math.sqrt(share * (1 - share) * asked)
    assert abs(clients.answers["2"] - share * asked) < 5 * deviation


def test_a_shadow_never_answers(target: Endpoint, tmp_path: Path) -> None:
    deploy(target, Plan(release(tmp_path, "1"), shadow=release(tmp_path, "2")))
    status = target.status()
    assert status is not None
    assert (status.version, status.shadow) == ("1", "2")
    assert {answering(target) for _ in range(50)} == {"1"}


def test_the_previous_version_can_be_rolled_back_to(target: Endpoint, tmp_path: Path) -> None:
    serve(target, tmp_path, "1")
    serve(target, tmp_path, "2")
    deploy(target, Plan(previous_primary(target.history())))
    assert answering(target) == "1"


def test_the_history_tells_who_wanted_what_when_and_why(target: Endpoint, tmp_path: Path) -> None:
    start = utc_now()
    for version, by in (("1", "Ada"), ("2", "Grace")):
        plan = Plan(release(tmp_path, version))
        target.deploy(plan, by, f"it is number {version}", lambda step: None)
    history = target.history()
    assert list(dict.fromkeys(primaries(history))) == [None, "1", "2"]
    assert [(d.by, d.reason) for d in history if d.candidate is None] == [
        ("Ada", "it is number 1"),
        ("Grace", "it is number 2"),
    ]
    assert [d.candidate.version for d in history if d.candidate] == ["1", "2"]
    assert start <= history[0].at
    assert sorted(d.at for d in history) == [d.at for d in history]
    assert history[-1].at <= utc_now()
