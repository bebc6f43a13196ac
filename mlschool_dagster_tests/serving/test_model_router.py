"""Following deployments: what serves is always whole, and always proved."""

import asyncio
import gc
import math
import weakref
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.serving.desired_state import (
    DEPLOYMENTS_FILE,
    Deployment,
    Plan,
    Release,
    record_deployment,
)
from mlschool_dagster.serving.model_router import ModelRouter, NoVersionError, Routing, Version
from mlschool_dagster.serving.validation import Validator
from mlschool_dagster.serving.worker_status import read_workers
from mlschool_dagster_tests.serving.server import PATIENCE, release
from mlschool_dagster_tests.serving.tiny_model import SPEC, tiny_model

NOWHERE = Release("9", Path("/nowhere"))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def routing_of(router: ModelRouter) -> dict[Role, str]:
    assert router.routing is not None
    return {role: version.release.version for role, version in router.routing.roles.items()}


def loaded(version: str) -> Version:
    return Version(Release(version, Path()), tiny_model(), Validator(SPEC), datetime.now(UTC))


PRIMARY, CANARY = loaded("1"), loaded("2")
KEYS = [f"request-{number}" for number in range(20_000)]


def test_every_role_of_a_plan_is_filled(tmp_path: Path) -> None:
    one, two, three, four = (release(tmp_path, number) for number in "1234")
    plan = Plan(one, canary=two, canary_share=0.25, shadow=three, sampling_share=0.5)

    async def test() -> None:
        router = ModelRouter(tmp_path)
        record_deployment(tmp_path, Deployment(plan, candidate=four))
        await router.refresh()
        assert routing_of(router) == {
            Role.PRIMARY: "1",
            Role.CANARY: "2",
            Role.SHADOW: "3",
            Role.CANDIDATE: "4",
        }
        assert router.routing is not None
        assert (router.routing.canary_share, router.routing.sampling_share) == (0.25, 0.5)
        assert router.failure is None

    run(test)


def test_nothing_serves_before_the_first_deployment(tmp_path: Path) -> None:
    async def test() -> None:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert (router.routing, router.failure) == (None, None)

    run(test)


def test_a_candidate_alone_takes_no_traffic(tmp_path: Path) -> None:
    record_deployment(tmp_path, Deployment(Plan(None), candidate=release(tmp_path, "1")))

    async def test() -> None:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert router.routing is not None
        assert router.routing.primary is None
        with pytest.raises(NoVersionError):
            router.routing.choose("anyone")
        assert router.routing.variant(Role.CANDIDATE) is not None

    run(test)


@pytest.mark.parametrize("role", ["primary", "canary", "shadow"])
def test_a_plan_is_carried_out_as_a_whole_or_not_at_all(tmp_path: Path, role: str) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    plans = {
        "primary": Plan(NOWHERE, shadow=two),
        "canary": Plan(two, canary=NOWHERE, canary_share=0.5),
        "shadow": Plan(two, shadow=NOWHERE),
    }

    async def test() -> None:
        router = ModelRouter(tmp_path)
        record_deployment(tmp_path, Deployment(Plan(one)))
        await router.refresh()
        before = router.routing
        failing = Deployment(plans[role])
        record_deployment(tmp_path, failing)
        await router.refresh()
        assert router.routing == before
        assert router.deployment_id == failing.id
        assert router.failure is not None
        assert (router.failure.role, router.failure.version) == (Role(role), "9")
        assert "cannot be read" in router.failure.reason
        record_deployment(tmp_path, Deployment(Plan(two)))
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "2"}
        assert router.failure is None

    run(test)


def test_a_candidate_that_does_not_load_disturbs_nothing(tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")

    async def test() -> None:
        router = ModelRouter(tmp_path)
        record_deployment(tmp_path, Deployment(Plan(one, shadow=two), candidate=NOWHERE))
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "1", Role.SHADOW: "2"}
        assert router.failure is not None
        assert (router.failure.role, router.failure.version) == (Role.CANDIDATE, "9")

    run(test)


def test_a_candidate_is_tested_even_if_what_should_serve_has_gone(tmp_path: Path) -> None:
    record_deployment(tmp_path, Deployment(Plan(NOWHERE), candidate=release(tmp_path, "1")))

    async def test() -> None:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert routing_of(router) == {Role.CANDIDATE: "1"}

    run(test)


def test_a_damaged_file_is_told_and_what_serves_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        router = ModelRouter(tmp_path)
        record_deployment(tmp_path, Deployment(Plan(release(tmp_path, "1"))))
        await router.refresh()
        with (tmp_path / DEPLOYMENTS_FILE).open("a") as file:
            file.write("{}\n")
        await router.refresh()
        assert router.failure is not None
        assert "damaged" in router.failure.reason
        assert routing_of(router) == {Role.PRIMARY: "1"}
        (tmp_path / DEPLOYMENTS_FILE).unlink()
        record_deployment(tmp_path, Deployment(Plan(release(tmp_path, "2"))))
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "2"}

    run(test)


def test_a_version_whose_folder_appears_late_serves_then(tmp_path: Path) -> None:
    late = release(tmp_path, "1")
    late.folder.rename(tmp_path / "not mounted yet")
    record_deployment(tmp_path, Deployment(Plan(late)))

    async def test() -> None:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert (router.routing, router.failure is None) == (None, False)
        (tmp_path / "not mounted yet").rename(late.folder)
        while router.routing is None:
            await router.refresh()
            await asyncio.sleep(0.05)
        assert routing_of(router) == {Role.PRIMARY: "1"}
        assert router.failure is None

    run(test)


def test_a_version_serves_since_it_got_a_part_in_the_plan(tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    history = [
        Deployment(Plan(one)),
        Deployment(Plan(one), candidate=two),
        Deployment(Plan(one, canary=two, canary_share=0.5)),
        Deployment(Plan(two)),
        Deployment(Plan(two), candidate=one),
    ]

    async def since() -> datetime:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert router.routing is not None
        assert router.routing.primary is not None
        return router.routing.primary.since

    async def test() -> None:
        for deployment, start in zip(history, (0, 0, 0, 2, 2), strict=True):
            record_deployment(tmp_path, deployment)
            assert await since() == history[start].at

    run(test)


def test_what_serves_no_more_is_let_go(tmp_path: Path) -> None:
    async def test() -> None:
        router = ModelRouter(tmp_path)
        record_deployment(tmp_path, Deployment(Plan(release(tmp_path, "1"))))
        await router.refresh()
        assert router.routing is not None
        assert router.routing.primary is not None
        old = weakref.ref(router.routing.primary.model.layers[0].kernel)
        record_deployment(tmp_path, Deployment(Plan(release(tmp_path, "2"))))
        await router.refresh()
        gc.collect()
        assert old() is None

    run(test)


def test_it_follows_and_tells_while_it_lives(tmp_path: Path) -> None:
    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.02)

    async def test() -> None:
        router = ModelRouter(tmp_path)
        following = asyncio.create_task(router.follow())
        await until(lambda: len(read_workers(tmp_path)) == 1)
        deployment = Deployment(Plan(release(tmp_path, "1")))
        record_deployment(tmp_path, deployment)
        await until(lambda: read_workers(tmp_path)[0].deployment_id == deployment.id)
        (worker,) = read_workers(tmp_path)
        assert (worker.version, worker.since, worker.failure) == ("1", deployment.at, None)
        (file,) = (tmp_path / "workers").iterdir()
        told = file.stat().st_mtime_ns
        await until(lambda: file.stat().st_mtime_ns > told)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert not file.exists()

    run(test)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_canary_gets_its_share(share: float) -> None:
    routing = Routing({Role.PRIMARY: PRIMARY, Role.CANARY: CANARY}, canary_share=share)
    chosen = [routing.choose(key) for key in KEYS]
    assert set(chosen) == {(Role.PRIMARY, PRIMARY), (Role.CANARY, CANARY)}
    assert_share([role is Role.CANARY for role, _ in chosen], share)
    assert chosen == [routing.choose(key) for key in KEYS]


@pytest.mark.parametrize("canary_share", [0.1, 0.5])
@pytest.mark.parametrize("sampling_share", [0.05, 0.5])
def test_canary_and_sample_are_independent(canary_share: float, sampling_share: float) -> None:
    routing = Routing({Role.PRIMARY: PRIMARY, Role.CANARY: CANARY}, canary_share, sampling_share)
    assert_share([routing.sampled(key) for key in KEYS], sampling_share)
    of_canary = [key for key in KEYS if routing.choose(key)[0] is Role.CANARY]
    assert_share([routing.sampled(key) for key in of_canary], sampling_share)


def test_a_canary_can_take_everything_and_the_sample_be_everything() -> None:
    routing = Routing({Role.PRIMARY: PRIMARY, Role.CANARY: CANARY}, canary_share=1.0)
    assert {routing.choose(key)[0] for key in KEYS} == {Role.CANARY}
    assert all(routing.sampled(key) for key in KEYS)


def assert_share(hits: list[bool], share: float) -> None:
    """The share of `hits` is within five standard deviations of `share`."""
    deviation = math.sqrt(share * (1 - share) / len(hits))
    assert abs(sum(hits) / len(hits) - share) < 5 * deviation
