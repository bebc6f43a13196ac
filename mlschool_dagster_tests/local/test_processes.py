"""Child processes: never mistaken for another, and never left behind."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.local import processes
from mlschool_dagster.local.processes import (
    Identity,
    Service,
    claimed_port,
    free_port,
    is_free,
    kept_running,
    stop_tree,
)
from mlschool_dagster_tests.serving.server import wait_for

STUBBORN = """
import os, signal, subprocess, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    for _ in range(2):
        subprocess.Popen([sys.executable, __file__, "child"])
print("ready", flush=True)
time.sleep(120)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Another program's server on some port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken


def test_a_free_port_is_taken_as_it_is() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    assert free_port(port) == port


def test_a_port_that_is_taken_gives_way_to_the_next(listener: socket.socket) -> None:
    port = int(listener.getsockname()[1])
    assert not is_free(port)
    assert free_port(port) > port


def test_a_port_that_is_promised_is_avoided() -> None:
    first = free_port(20000)
    assert free_port(first, avoid=[first]) > first


def test_ports_running_out_is_reported_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"No port from 20000 to 20099 is free; stop what uses"):
        free_port(20000, avoid=range(20000, 20100))


def test_a_port_that_another_platform_has_claimed_is_not_promised_again() -> None:
    first, claim = claimed_port(20000)
    second, other = claimed_port(20000)
    assert is_free(first)
    assert second > first
    for held in (claim, other):
        held.release()
    again, claim = claimed_port(first)
    assert again == first
    claim.release()


def test_a_process_is_found_by_its_identity() -> None:
    identity = Identity.of(os.getpid())
    found = identity.find()
    assert found is not None
    assert found.pid == os.getpid()


def test_a_process_that_has_ended_is_not_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = Identity.of(process.pid)
        process.kill()
        # Not waited for yet: a dead process that still has its pid runs no more.
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert identity.find() is None
    assert identity.find() is None


def test_a_pid_that_another_process_has_now_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            reused = replace(Identity.of(other.pid), created=time.time() - 3600)
            assert reused.find() is None
            stop_tree(reused)
            assert other.poll() is None
        finally:
            other.kill()


def test_children_that_ignore_being_asked_are_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 2.0)
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    log = tmp_path / "log" / "stubborn.log"
    service = Service.start("stubborn", [sys.executable, str(program)], os.environ, log)
    service.wait_until(lambda: log.read_text().count("ready") == 3)
    children = psutil.Process(service.process.pid).children()
    family = [service.identity, *(Identity.of(child.pid) for child in children)]
    assert len(family) == 3
    stop_tree(service.identity)
    service.process.wait()
    assert not [member for member in family if member.find()]


def test_stopping_what_has_ended_does_nothing(tmp_path: Path) -> None:
    service = Service.start("brief", [sys.executable, "-c", ""], os.environ, tmp_path / "log")
    service.process.wait()
    stop_tree(service.identity)


def test_a_service_that_ends_while_it_starts_is_reported_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    service = Service.start("brief", [sys.executable, "-c", "print('sorry')"], os.environ, log)
    with pytest.raises(UserError, match=f"brief ended while it started; see {log}."):
        service.wait_until(lambda: False)
    assert log.read_text() == "sorry\n"


def test_a_service_that_never_answers_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "READY_SECONDS", 0.5)
    service = Service.start("mute", ["sleep", "60"], os.environ, tmp_path / "log")
    try:
        with pytest.raises(UserError, match=r"mute did not answer within 0 s|within 1 s"):
            service.wait_until(lambda: False)
    finally:
        service.process.kill()
        service.process.wait()


PARENT = """
import subprocess, sys, time
while True:
    subprocess.call([sys.executable, "-c", "import time; time.sleep(120)"])
    time.sleep(0.5)
"""


def kill_children(service: Service) -> None:
    process = service.identity.find()
    for child in process.children() if process else []:
        child.kill()


def test_a_service_is_of_no_use_without_the_child_that_does_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CHECK_SECONDS", 0.01)
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    command = [sys.executable, str(program)]
    services = [Service.start("parent", command, os.environ, tmp_path / "log", needs_child=True)]
    first = services[0]
    again: list[Service] = []
    try:
        with kept_running(services, again.append):
            while not again:
                wait_for(lambda: again or first.has_child())
                kill_children(first)
        assert first.identity.find() is None
        assert services == again[-1:]
    finally:
        for service in (first, *again):
            stop_tree(service.identity)
            service.process.wait()


def test_a_service_that_ends_at_once_again_and_again_rests_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CHECK_SECONDS", 0.01)
    services = [Service.start("brief", [sys.executable, "-c", ""], os.environ, tmp_path / "log")]
    starts: list[float] = []
    with kept_running(services, lambda _: starts.append(time.monotonic())):
        wait_for(lambda: len(starts) == 5)
    services[0].process.wait()
    assert starts[-1] - starts[0] >= 0.01 * (2 + 4 + 8 + 16)
