"""The server's desired state: one file, the old one or the new one, whatever dies meanwhile."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import Role
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.desired_state import (
    DESIRED_STATE_FILE,
    DesiredState,
    VersionFolder,
    read_desired_state,
    write_desired_state,
)

START = datetime(2026, 11, 20, 23, tzinfo=UTC)

folders = st.builds(VersionFolder, st.text(), st.sampled_from([Path("/a"), Path("/b c")]))
states = st.builds(
    DesiredState,
    st.dictionaries(st.sampled_from(Role), folders),
    canary_share=st.floats(0, 1),
    sampling_share=st.floats(0, 1),
    at=st.datetimes(timezones=st.just(UTC)),
)


def state(version: str, hours: int = 0, **candidate: str) -> DesiredState:
    roles = {Role.PRIMARY: version, **{Role(role): v for role, v in candidate.items()}}
    return DesiredState(
        {role: VersionFolder(v, Path("/versions", v)) for role, v in roles.items()},
        at=START + timedelta(hours=hours),
    )


def read(home: Path) -> DesiredState:
    result = read_desired_state(home)
    assert result is not None
    return result


def test_nothing_is_desired_at_first(tmp_path: Path) -> None:
    assert read_desired_state(tmp_path) is None
    assert read_desired_state(tmp_path / "nowhere") is None


@given(st.lists(states, min_size=1, max_size=4))
def test_the_newest_state_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[DesiredState]
) -> None:
    home = tmp_path_factory.mktemp("home") / "endpoint"
    for each in written:
        write_desired_state(home, each)
    result, last = read(home), written[-1]
    assert (result.roles, result.id, result.at) == (last.roles, last.id, last.at)
    assert (result.canary_share, result.sampling_share) == (last.canary_share, last.sampling_share)


def test_a_version_has_a_role_since_it_first_got_one(tmp_path: Path) -> None:
    for each, since in (
        (state("1"), {"1": 0}),
        (state("1", 1, candidate="2"), {"1": 0}),
        (state("1", 2, canary="2"), {"1": 0, "2": 2}),
        (state("2", 3), {"2": 2}),
        (state("1", 4), {"1": 4}),
    ):
        write_desired_state(tmp_path, each)
        expected = {version: START + timedelta(hours=hours) for version, hours in since.items()}
        assert read(tmp_path).since == expected


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"[]", b"\0\0", b"\xff", b'{"roles": 1}'])
def test_a_damaged_file_is_named_and_not_overwritten(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / DESIRED_STATE_FILE
    path.write_bytes(damage)
    for use in (read_desired_state, lambda home: write_desired_state(home, state("1"))):
        with pytest.raises(UserError, match=r"desired_state\.json is damaged; move it away"):
            use(tmp_path)
    assert path.read_bytes() == damage


def test_a_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    written = [str(number) for number in range(50)]
    write_desired_state(tmp_path, state("0"))

    def write() -> None:
        for version in written:
            write_desired_state(tmp_path, state(version))

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(read(tmp_path).roles[Role.PRIMARY].version)
    writer.join()
    assert seen == sorted(seen, key=int)
    assert read(tmp_path).roles[Role.PRIMARY].version == written[-1]


def test_a_candidate_comes_and_goes_beside_what_serves() -> None:
    before = state("1", canary="2")
    candidate = VersionFolder("3", Path("/versions/3"))
    tested = before.with_candidate(candidate)
    assert tested.roles == {**before.roles, Role.CANDIDATE: candidate}
    assert tested.without_candidate.roles == before.roles
    assert len({before.id, tested.id, tested.without_candidate.id}) == 3
    assert before.at.tzinfo is UTC
    assert DesiredState().at.tzinfo is UTC
