"""What every endpoint promises, wherever it lives.

An implementation is one entry of `IMPLEMENTATIONS`: a function that gives an endpoint to which
nothing was deployed, with its state (or its service) in a folder. What only some can do is asked of
those that declare the capability.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment.endpoint import (
    Endpoint,
    Invoke,
    State,
    Verify,
    VersionFiles,
    accept,
)
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster_tests.deployment.local_endpoints import version_files
from mlschool_dagster_tests.serving.server import free_port, server_config, store_uri, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model

ONE, TWO = Plan(primary="1"), Plan(primary="2")


def local(home: Path) -> Endpoint:
    return LocalEndpoint(server_config(home, store_uri(home), port=free_port()))


IMPLEMENTATIONS: list[Callable[[Path], Endpoint]] = [local]


@pytest.fixture(params=IMPLEMENTATIONS)
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoint]:
    """An endpoint to which nothing was deployed."""
    endpoint: Endpoint = request.param(tmp_path)
    yield endpoint
    endpoint.teardown()


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def serving(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """An endpoint that serves version 1."""
    home = tmp_path_factory.mktemp("home")
    endpoint: Endpoint = request.param(home)
    endpoint.deploy(ONE, version_files(home, "1"))
    yield endpoint
    endpoint.teardown()


@pytest.fixture
def files(tmp_path: Path) -> Mapping[str, VersionFiles]:
    """Versions 1 to 3."""
    return version_files(tmp_path, "1", "2", "3")


def deploy(
    endpoint: Endpoint,
    plan: Plan,
    files: Mapping[str, VersionFiles],
    verify: Verify = accept,
) -> list[str]:
    """Deploy `plan`, and return the sentences about its progress."""
    steps: list[str] = []
    status = endpoint.deploy(plan, files, verify=verify, progress=steps.append)
    assert status.is_as_desired
    assert status.serving == plan
    return steps


def answering(endpoint: Endpoint) -> str:
    return endpoint.invoke([ROW])[0].model_version


def canary_share(endpoint: Endpoint) -> float:
    """A share that the endpoint can give to a canary."""
    return min(0.3, endpoint.capabilities.largest_canary_share)


def with_shadow(endpoint: Endpoint, primary: str, shadow: str) -> Plan:
    share = endpoint.capabilities.largest_shadow_share
    return Plan(primary=primary, shadow=shadow, shadow_share=share)


@dataclass
class Traffic:
    """What clients received: the version of each answer, and what went wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)

    def wait_for_answers(self, more: int) -> None:
        enough = self.answers.total() + more
        wait_for(lambda: self.answers.total() >= enough or self.failures)


@contextmanager
def traffic(endpoint: Endpoint) -> Iterator[Traffic]:
    """Clients that send requests without a pause."""
    result = Traffic()
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                result.answers[answering(endpoint)] += 1
            except Exception as error:
                result.failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_deployed_version_serves(endpoint: Endpoint, files: Mapping[str, VersionFiles]) -> None:
    before = utc_now()
    steps = deploy(endpoint, ONE, files)
    status = endpoint.status()
    assert (status.name, status.state) == (endpoint.name, State.SERVING)
    assert status.serving == status.desired == ONE
    assert status.is_as_desired
    assert not status.is_changing
    assert status.url.startswith("http")
    assert status.reason == ""
    assert status.since is not None
    assert before - timedelta(seconds=1) < status.since < utc_now() + timedelta(seconds=1)
    assert len(steps) >= 2
    assert all(step.endswith(".") for step in steps)


def test_it_answers_each_row_in_order(serving: Endpoint) -> None:
    rows = [{**ROW, "body_mass_g": mass} for mass in (3000, 4500, None)]
    answers = serving.invoke(rows, "three")
    assert len({answer.event_id for answer in answers}) == 3
    assert answers[0].event_id == "three"
    for answer, shares in zip(answers, tiny_model(1).probabilities(rows), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(list(shares))
        assert answer.probabilities[answer.prediction] == answer.confidence == max(shares)
        assert answer.model_version == "1"


def test_refused_rows_come_back_with_their_faults(serving: Endpoint) -> None:
    with pytest.raises(RefusedError) as refused:
        serving.invoke([{**ROW, "body_mass_g": -1}])
    assert [fault["column"] for fault in refused.value.faults] == ["body_mass_g"]


def test_a_reused_id_is_answered_as_before_or_refused(serving: Endpoint) -> None:
    first = serving.invoke([ROW], "once")
    if serving.capabilities.refuses_reused_ids:
        assert serving.invoke([ROW], "once") == first
        with pytest.raises(RefusedError):
            serving.invoke([{**ROW, "sex": None}], "once")
    else:
        assert serving.invoke([{**ROW, "sex": None}], "once")[0].event_id == "once"


def test_nothing_serves_before_a_deployment_and_after_a_teardown(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    for _ in range(2):
        endpoint.teardown()
        status = endpoint.status()
        assert (status.state, status.serving, status.desired) == (State.ABSENT, None, None)
        with pytest.raises(UserError):
            endpoint.invoke([ROW])
        deploy(endpoint, TWO, files)
        assert answering(endpoint) == "2"


def test_nothing_is_missing_for_a_deployment(serving: Endpoint, endpoint: Endpoint) -> None:
    assert endpoint.preflight() == []
    assert serving.preflight() == []


def test_a_plan_beyond_its_capabilities_is_refused_before_anything_is_touched(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    able = endpoint.capabilities
    canary = {"canary": "2", "canary_share": canary_share(endpoint) or 0.1}
    shadow = {"shadow": "3", "shadow_share": able.largest_shadow_share or 0.1}
    beyond = [
        *([] if able.canary else [canary]),
        *([] if able.shadow else [shadow]),
        *([] if able.shadow_beside_canary else [{**canary, **shadow}]),
        *([{**canary, "canary_share": 1.0}] if able.largest_canary_share < 1.0 else []),
        *([{**shadow, "shadow_share": 1.0}] if able.largest_shadow_share < 1.0 else []),
        *([{**shadow, "shadow_share": 0.001}] if able.smallest_shadow_share > 0.001 else []),
        *([{"sampling_share": able.sampling_step / 3}] if able.sampling_step else []),
    ]
    for roles in beyond:
        with pytest.raises(UserError) as refused:
            endpoint.deploy(Plan(primary="1", **roles), files)  # type: ignore[arg-type]
        assert str(refused.value).count("\n") == 0
    assert endpoint.status().state is State.ABSENT


def test_the_first_version_takes_no_traffic_before_it_is_verified(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    def verify(version: str, invoke: Invoke) -> None:
        assert invoke([ROW])[0].model_version == version == "1"
        status = endpoint.status()
        assert not status.is_as_desired
        assert status.is_changing

    deploy(endpoint, ONE, files, verify)
    assert answering(endpoint) == "1"


def test_each_new_version_is_verified_beside_what_serves(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    verified: list[str] = []

    def verify(version: str, invoke: Invoke) -> None:
        verified.append(version)
        rows = [ROW, {**ROW, "sex": None}]
        expected = tiny_model(int(version)).probabilities(rows)
        for answer, shares in zip(invoke(rows), expected, strict=True):
            assert answer.model_version == version
            assert list(answer.probabilities.values()) == pytest.approx(list(shares))
        if len(verified) > 1:
            assert answering(endpoint) == "1"
            assert endpoint.status().serving == ONE
            assert not endpoint.status().is_as_desired

    deploy(endpoint, ONE, files, verify)
    deploy(endpoint, TWO, files, verify)
    assert verified == ["1", "2"]
    assert answering(endpoint) == "2"


def test_what_serves_already_is_not_verified_again(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    deploy(endpoint, ONE, files)
    since = endpoint.status().since

    def verify(version: str, invoke: Invoke) -> None:
        raise AssertionError("It serves already.")

    deploy(endpoint, ONE, files, verify)
    assert endpoint.status().since == since


def test_the_version_before_goes_on_if_a_deployment_fails(
    endpoint: Endpoint, files: Mapping[str, VersionFiles], tmp_path: Path
) -> None:
    deploy(endpoint, ONE, files)
    (files["2"].folder / "compiled.npz").write_bytes(b"damaged")
    for bad in (files, {"2": VersionFiles.of(tmp_path / "nowhere")}):
        with pytest.raises(UserError):
            endpoint.deploy(TWO, bad)
        assert endpoint.status().serving == ONE
    assert answering(endpoint) == "1"
    deploy(endpoint, Plan(primary="3"), files)
    assert answering(endpoint) == "3"


def test_a_first_version_that_fails_leaves_nothing_that_serves(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    def verify(version: str, invoke: Invoke) -> None:
        raise UserError("It is wrong.")

    with pytest.raises(UserError, match="It is wrong"):
        endpoint.deploy(ONE, files, verify=verify)
    assert endpoint.status().serving is None
    with pytest.raises(UserError):
        endpoint.invoke([ROW])
    deploy(endpoint, TWO, files)


@pytest.mark.parametrize("fault", [UserError("It is wrong."), KeyboardInterrupt()])
def test_a_version_that_is_not_verified_never_answers(
    endpoint: Endpoint, files: Mapping[str, VersionFiles], fault: BaseException
) -> None:
    deploy(endpoint, ONE, files)

    with traffic(endpoint) as clients:

        def verify(version: str, invoke: Invoke) -> None:
            clients.wait_for_answers(100)
            raise fault

        with pytest.raises(type(fault)):
            endpoint.deploy(TWO, files, verify=verify)
        clients.wait_for_answers(100)
    assert clients.failures == []
    assert set(clients.answers) == {"1"}
    assert endpoint.status().serving == ONE


def test_no_request_fails_while_versions_are_swapped(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    deploy(endpoint, ONE, files)
    with traffic(endpoint) as clients:
        for version in ("2", "3", "1", "2", "3"):
            deploy(endpoint, Plan(primary=version), files)
            assert answering(endpoint) == version
    assert clients.failures == []
    assert set(clients.answers) == {"1", "2", "3"}


def test_a_canary_answers_its_share(endpoint: Endpoint, files: Mapping[str, VersionFiles]) -> None:
    if not endpoint.capabilities.canary:
        pytest.skip("no canaries")
    share = canary_share(endpoint)
    deploy(endpoint, Plan(primary="1", canary="2", canary_share=share), files)
    with traffic(endpoint) as clients:
        clients.wait_for_answers(500)
    assert clients.failures == []
    asked = clients.answers.total()
    deviation = math.sqrt(share * (1 - share) * asked)
    assert abs(clients.answers["2"] - share * asked) < 5 * deviation


def test_a_shadow_never_answers(endpoint: Endpoint, files: Mapping[str, VersionFiles]) -> None:
    if not endpoint.capabilities.shadow:
        pytest.skip("no shadows")
    deploy(endpoint, with_shadow(endpoint, "1", "2"), files)
    assert {answering(endpoint) for _ in range(50)} == {"1"}


def test_a_canary_and_a_shadow_serve_at_once(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    able = endpoint.capabilities
    if not able.shadow_beside_canary:
        pytest.skip("no shadow beside a canary")
    shadow = with_shadow(endpoint, "1", "3")
    verified: list[str] = []
    deploy(endpoint, ONE, files)
    both = Plan(
        primary="1",
        canary="2",
        canary_share=able.largest_canary_share,
        shadow="3",
        shadow_share=shadow.shadow_share,
    )
    deploy(endpoint, both, files, lambda version, _: verified.append(version))
    assert verified == ["2", "3"]
    deploy(endpoint, with_shadow(endpoint, "2", "1"), files)
    assert answering(endpoint) == "2"


def test_versions_can_be_deployed_by_another_process_meanwhile(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    """A second deployment waits for the first, or is refused; it never mixes with it."""
    deploy(endpoint, ONE, files)
    second: list[object] = []

    def work() -> None:
        try:
            second.append(endpoint.deploy(Plan(primary="3"), files).serving)
        except UserError as error:
            second.append(error)

    other = threading.Thread(target=work)

    def verify(version: str, invoke: Invoke) -> None:
        if version == "2":
            other.start()
            assert invoke([ROW])[0].model_version == "2"

    status = endpoint.deploy(TWO, files, verify=verify)
    assert status.serving == TWO
    other.join()
    (outcome,) = second
    if isinstance(outcome, UserError):
        assert answering(endpoint) == "2"
    else:
        assert outcome == Plan(primary="3")
        assert answering(endpoint) == "3"


def test_activity_counts_what_the_endpoint_did(
    endpoint: Endpoint, files: Mapping[str, VersionFiles]
) -> None:
    begin = utc_now()
    deploy(endpoint, ONE, files)
    for _ in range(20):
        endpoint.invoke([ROW])
    with pytest.raises(RefusedError):
        endpoint.invoke([{**ROW, "body_mass_g": -1}])
    # Services count a little late.
    wait_for(lambda: endpoint.activity(begin, utc_now()).refusals)
    wait_for(lambda: endpoint.activity(begin, utc_now()).requests >= 21)
    result = endpoint.activity(begin, utc_now())
    assert result.errors == result.error_share == 0
    assert result.refusals == 1
    assert list(result.latency.values()) == sorted(result.latency.values())
    assert set(result.latency) == {0.5, 0.95, 0.99}
    assert all(0 < seconds < 60 for seconds in result.latency.values())
    if result.by_version:
        assert set(result.by_version) == {"1"}
        assert result.by_version["1"].requests >= 20


def test_nothing_happened_before_a_deployment(endpoint: Endpoint) -> None:
    now = utc_now()
    result = endpoint.activity(now - timedelta(hours=1), now)
    assert (result.requests, result.errors, result.refusals, dict(result.latency)) == (0, 0, 0, {})
