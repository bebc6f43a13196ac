"""Following the desired state: what serves is always whole, and always proved."""

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
    DESIRED_STATE_FILE,
    DesiredState,
    VersionFolder,
    write_desired_state,
)
from mlschool_dagster.serving.model_router import ModelRouter, NoVersionError, Routing, Version
from mlschool_dagster.serving.validation import Validator
from mlschool_dagster.serving.worker_status import read_workers
from mlschool_dagster_tests.serving.server import TIMEOUT, release
from mlschool_dagster_tests.serving.tiny_model import SPEC, tiny_model

NOWHERE = VersionFolder("9", Path("/nowhere"))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), TIMEOUT))


def routing_of(router: ModelRouter) -> dict[Role, str]:
    assert router.routing is not None
    return {role: version.number for role, version in router.routing.roles.items()}


def loaded(version: str) -> Version:
    return Version(VersionFolder(version, Path()), tiny_model(), Validator(SPEC), datetime.now(UTC))


PRIMARY, CANARY = loaded("1"), loaded("2")
KEYS = [f"request-{number}" for number in range(20_000)]


def test_every_role_is_filled(tmp_path: Path) -> None:
    one, two, three, four = (release(tmp_path, number) for number in "1234")
    desired = DesiredState(
        {Role.PRIMARY: one, Role.CANARY: two, Role.SHADOW: three, Role.CANDIDATE: four},
        canary_share=0.25,
        sampling_share=0.5,
    )

    async def test() -> None:
        router = ModelRouter(tmp_path)
        write_desired_state(tmp_path, desired)
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
    write_desired_state(tmp_path, DesiredState({Role.CANDIDATE: release(tmp_path, "1")}))

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
def test_a_state_is_reached_as_a_whole_or_not_at_all(tmp_path: Path, role: str) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    states = {
        "primary": DesiredState({Role.PRIMARY: NOWHERE, Role.SHADOW: two}),
        "canary": DesiredState({Role.PRIMARY: two, Role.CANARY: NOWHERE}, canary_share=0.5),
        "shadow": DesiredState({Role.PRIMARY: two, Role.SHADOW: NOWHERE}),
    }

    async def test() -> None:
        router = ModelRouter(tmp_path)
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: one}))
        await router.refresh()
        before = router.routing
        failing = states[role]
        write_desired_state(tmp_path, failing)
        await router.refresh()
        assert router.routing == before
        assert router.deployment_id == failing.id
        assert router.failure is not None
        assert (router.failure.role, router.failure.version) == (Role(role), "9")
        assert "cannot be read" in router.failure.reason
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: two}))
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "2"}
        assert router.failure is None

    run(test)


def test_a_candidate_that_does_not_load_disturbs_nothing(tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")

    async def test() -> None:
        router = ModelRouter(tmp_path)
        write_desired_state(
            tmp_path, DesiredState({Role.PRIMARY: one, Role.SHADOW: two, Role.CANDIDATE: NOWHERE})
        )
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "1", Role.SHADOW: "2"}
        assert router.failure is not None
        assert (router.failure.role, router.failure.version) == (Role.CANDIDATE, "9")

    run(test)


def test_a_candidate_is_tested_even_if_what_should_serve_has_gone(tmp_path: Path) -> None:
    write_desired_state(
        tmp_path, DesiredState({Role.PRIMARY: NOWHERE, Role.CANDIDATE: release(tmp_path, "1")})
    )

    async def test() -> None:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert routing_of(router) == {Role.CANDIDATE: "1"}

    run(test)


def test_a_damaged_file_is_reported_and_what_serves_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        router = ModelRouter(tmp_path)
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: release(tmp_path, "1")}))
        await router.refresh()
        with (tmp_path / DESIRED_STATE_FILE).open("a") as file:
            file.write("{}\n")
        await router.refresh()
        assert router.failure is not None
        assert "damaged" in router.failure.reason
        assert routing_of(router) == {Role.PRIMARY: "1"}
        (tmp_path / DESIRED_STATE_FILE).unlink()
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: release(tmp_path, "2")}))
        await router.refresh()
        assert routing_of(router) == {Role.PRIMARY: "2"}

    run(test)


def test_a_version_whose_folder_appears_late_serves_then(tmp_path: Path) -> None:
    late = release(tmp_path, "1")
    late.folder.rename(tmp_path / "not mounted yet")
    write_desired_state(tmp_path, DesiredState({Role.PRIMARY: late}))

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


def test_a_version_serves_since_it_first_got_a_role(tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    history = [
        DesiredState({Role.PRIMARY: one}),
        DesiredState({Role.PRIMARY: one, Role.CANDIDATE: two}),
        DesiredState({Role.PRIMARY: one, Role.CANARY: two}, 0.5),
        DesiredState({Role.PRIMARY: two}),
        DesiredState({Role.PRIMARY: two, Role.CANDIDATE: one}),
    ]

    async def since() -> datetime:
        router = ModelRouter(tmp_path)
        await router.refresh()
        assert router.routing is not None
        assert router.routing.primary is not None
        return router.routing.primary.since

    async def test() -> None:
        for desired, start in zip(history, (0, 0, 0, 2, 2), strict=True):
            write_desired_state(tmp_path, desired)
            assert await since() == history[start].at

    run(test)


def test_what_serves_no_more_is_let_go(tmp_path: Path) -> None:
    async def test() -> None:
        router = ModelRouter(tmp_path)
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: release(tmp_path, "1")}))
        await router.refresh()
        assert router.routing is not None
        assert router.routing.primary is not None
        old = weakref.ref(router.routing.primary.model.layers[0].kernel)
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: release(tmp_path, "2")}))
        await router.refresh()
        gc.collect()
        assert old() is None

    run(test)


def test_it_follows_and_reports_while_it_lives(tmp_path: Path) -> None:
    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.02)

    async def test() -> None:
        router = ModelRouter(tmp_path)
        following = asyncio.create_task(router.follow())
        await until(lambda: len(read_workers(tmp_path)) == 1)
        deployment = DesiredState({Role.PRIMARY: release(tmp_path, "1")})
        write_desired_state(tmp_path, deployment)
        await until(lambda: read_workers(tmp_path)[0].deployment_id == deployment.id)
        (worker,) = read_workers(tmp_path)
        assert (worker.version, worker.since, worker.failure) == ("1", deployment.at, None)
        (file,) = (tmp_path / "workers").iterdir()
        written_at = file.stat().st_mtime_ns
        await until(lambda: file.stat().st_mtime_ns > written_at)
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
