"""The deployments' file: state and history in one, whatever dies while it is written."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.desired_state import (
    DEPLOYMENTS_FILE,
    Deployment,
    DeploymentLog,
    Plan,
    Release,
    previous_primary,
    read_deployment,
    read_deployments,
    record_deployment,
)

releases = st.builds(Release, st.text(), st.sampled_from([Path("/a"), Path("/b c")]))
plans = st.builds(
    Plan, st.none() | releases, shadow=st.none() | releases, sampling_share=st.floats(0.1, 1)
) | st.builds(Plan, releases, canary=releases, canary_share=st.floats(0.1, 1))
deployments = st.builds(
    Deployment,
    plans,
    by=st.text(),
    reason=st.text(),
    candidate=st.none() | releases,
    at=st.datetimes(timezones=st.just(UTC)),
)


def plan(version: str | None) -> Plan:
    return Plan(None if version is None else Release(version, Path("/models") / version))


def record(home: Path, *versions: str | None) -> None:
    for version in versions:
        record_deployment(home, Deployment(plan(version)))


def versions(found: list[Deployment]) -> list[str | None]:
    return [d.plan.primary.version if d.plan.primary else None for d in found]


def test_nothing_is_wanted_before_the_first_deployment(tmp_path: Path) -> None:
    assert read_deployment(tmp_path) is None
    assert read_deployments(tmp_path / "nowhere") == []


@given(st.lists(deployments, min_size=1, max_size=4))
def test_what_was_recorded_is_read(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Deployment]
) -> None:
    home = tmp_path_factory.mktemp("home") / "endpoint"
    for deployment in recorded:
        record_deployment(home, deployment)
    assert read_deployments(home) == recorded
    assert read_deployment(home) == recorded[-1]


def test_whatever_a_crash_left_of_a_line_never_was(tmp_path: Path) -> None:
    record(tmp_path, "1", "2", "3")
    path = tmp_path / DEPLOYMENTS_FILE
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert versions(read_deployments(tmp_path)) == ["1", "2", "3"][:complete]
        record(tmp_path, "4")
        assert versions(read_deployments(tmp_path)) == [*["1", "2", "3"][:complete], "4"]


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    record(tmp_path, "1")
    for damage in (b"{}\n", b"\0\0\n", b"[1]\n", b"\xff\n", b"\n"):
        (tmp_path / DEPLOYMENTS_FILE).write_bytes(damage)
        with pytest.raises(UserError, match=r"deployments\.jsonl is damaged; move it away"):
            read_deployments(tmp_path)


def test_a_follower_reads_each_line_once(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path)
    assert log.news() == []
    record(tmp_path, "1", "2")
    assert versions(log.news()) == ["1", "2"]
    assert log.news() == []
    record(tmp_path, "3")
    assert versions(log.news()) == ["3"]


def test_a_follower_reads_a_file_that_was_replaced_from_its_beginning(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path)
    record(tmp_path, "1")
    log.news()
    (tmp_path / DEPLOYMENTS_FILE).rename(tmp_path / "moved away")
    assert log.news() == []
    record(tmp_path, "2", "3")
    assert versions(log.news()) == ["2", "3"]


def test_a_follower_notices_another_file_in_the_same_place_on_the_disk(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path)
    record(tmp_path, "1")
    log.news()
    os.truncate(tmp_path / DEPLOYMENTS_FILE, 0)
    record(tmp_path, "2", "3")
    assert versions(log.news()) == ["2", "3"]


def test_a_follower_never_sees_half_a_deployment(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path)
    written = [str(number) for number in range(100)]
    writer = threading.Thread(target=record, args=(tmp_path, *written))
    writer.start()
    seen: list[str | None] = []
    while writer.is_alive():
        seen += versions(log.news())
    writer.join()
    assert seen + versions(log.news()) == written


@pytest.mark.parametrize(
    ("served", "previous"),
    [
        ([], None),
        (["1"], None),
        (["1", "1"], None),
        (["1", "2"], "1"),
        (["1", "2", "2"], "1"),
        (["1", "2", "1"], "2"),
        (["1", None, "2", None], "1"),
        ([None], None),
    ],
)
def test_the_previous_primary_is_the_last_other_one(
    served: list[str | None], previous: str | None
) -> None:
    found = previous_primary([Deployment(plan(version)) for version in served])
    assert (None if found is None else found.version) == previous


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.1, float("nan")])
def test_a_canary_without_a_sensible_share_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="canary share"):
        Plan(Release("1", Path("1")), canary=Release("2", Path("2")), canary_share=share)


def test_a_share_without_a_canary_is_refused() -> None:
    with pytest.raises(UserError, match="canary share"):
        Plan(Release("1", Path("1")), canary_share=0.5)


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.1, float("nan")])
def test_a_sampling_share_without_sense_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="sampling share"):
        Plan(None, sampling_share=share)


def test_a_plan_names_each_release_once() -> None:
    one, two = Release("1", Path("1")), Release("2", Path("2"))
    assert Plan(one, shadow=one).releases == [one]
    assert Plan(one, canary=two, canary_share=1, shadow=one).releases == [one, two]


def test_a_deployment_is_dated_in_utc() -> None:
    assert Deployment(Plan(None)).at.tzinfo is UTC
    assert Deployment(Plan(None)).at <= datetime.now(UTC)
