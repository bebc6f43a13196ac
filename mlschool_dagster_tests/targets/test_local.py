"""An endpoint as a process: found again, started anew, and never mistaken for another."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.deployment import Deployment, Release, write_deployment
from mlschool_dagster.targets.local import LocalTarget
from mlschool_dagster_tests.serving.server import free_port, release, store_uri, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def target(tmp_path: Path, port: int) -> Iterator[LocalTarget]:
    target = target_of(tmp_path, port)
    yield target
    target.stop()


def target_of(home: Path, port: int, name: str = "penguins") -> LocalTarget:
    return LocalTarget(home, store_uri(home), name, port=port)


def deploy(target: LocalTarget, home: Path, version: str) -> int:
    """Deploy `version` and return the server's pid."""
    status = target.deploy(version, release(home, version).folder, lambda step: None)
    return int(status.details["pid"])


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def record_of(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "server.json").read_text()))


def test_a_swap_keeps_the_process(target: LocalTarget, tmp_path: Path) -> None:
    assert deploy(target, tmp_path, "1") == deploy(target, tmp_path, "2")


def test_the_status_names_process_port_and_log(target: LocalTarget, tmp_path: Path) -> None:
    pid = deploy(target, tmp_path, "1")
    status = target.status()
    assert status is not None
    assert psutil.Process(pid).is_running()
    assert status.url == f"http://127.0.0.1:{status.details['port']}"
    assert "server starts" in Path(str(status.details["log"])).read_text()


def test_it_outlives_the_process_that_deployed_it_and_is_found_again(
    port: int, tmp_path: Path
) -> None:
    folder = release(tmp_path, "1").folder
    code = (
        "from pathlib import Path; from mlschool_dagster.targets.local import LocalTarget; "
        f"LocalTarget(Path({str(tmp_path)!r}), {store_uri(tmp_path)!r}, 'penguins', port={port})"
        f".deploy('1', Path({str(folder)!r}), print)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    again = target_of(tmp_path, port)
    try:
        pid = record_of(tmp_path)["pid"]
        assert again.invoke([ROW])[0].model_version == "1"
        assert deploy(again, tmp_path, "2") == pid
        assert os.getsid(pid) == pid
    finally:
        again.stop()
    assert not runs(pid)


def test_a_server_that_was_killed_is_started_anew(target: LocalTarget, tmp_path: Path) -> None:
    pid = deploy(target, tmp_path, "1")
    target.invoke([ROW], "before")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    assert target.status() is None
    assert deploy(target, tmp_path, "1") != pid
    assert target.invoke([ROW])[0].model_version == "1"


def test_a_pid_that_another_program_has_now_is_left_alone(
    target: LocalTarget, tmp_path: Path
) -> None:
    # Started well after the server: the system tells start times in hundredths of a second.
    pid = deploy(target, tmp_path, "1")
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            record = {**record_of(tmp_path), "pid": other.pid}
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not runs(pid))
            (tmp_path / "server.json").write_text(json.dumps(record))
            assert target.status() is None
            target.stop()
            assert deploy(target, tmp_path, "2") not in (pid, other.pid)
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_record_or_deployment_is_replaced(
    target: LocalTarget, tmp_path: Path, content: str
) -> None:
    (tmp_path / "server.json").write_text(content)
    (tmp_path / "deployment.json").write_text(content)
    deploy(target, tmp_path, "1")
    assert target.invoke([ROW])[0].model_version == "1"


def test_another_program_on_the_port_is_named(tmp_path: Path) -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        target = target_of(tmp_path, port)
        named = rf"Port {port} .* is taken by .*process {other.pid}"
        with pytest.raises(UserError, match=named if Path("/proc").exists() else "another program"):
            deploy(target, tmp_path, "1")
        assert other.poll() is None
        other.kill()
    assert target.status() is None
    assert not (tmp_path / "deployment.json").exists()


def test_an_answer_from_another_program_is_no_prediction(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        target = target_of(tmp_path, int(other.stdout.readline()))
        with pytest.raises(UserError, match="is not the endpoint penguins"):
            target.invoke([ROW])
        other.kill()


ECHO = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"hello": "world"}')
server = HTTPServer(("127.0.0.1", 0), Echo)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_other_settings_restart_the_server(target: LocalTarget, tmp_path: Path) -> None:
    pid = deploy(target, tmp_path, "1")
    moved = target_of(tmp_path, free_port(), name="birds")
    try:
        assert moved.status() is None
        assert deploy(moved, tmp_path, "2") != pid
        status = moved.status()
        assert status is not None
        assert (status.name, status.version) == ("birds", "2")
        assert target.status() is None
        assert not runs(pid)
    finally:
        moved.stop()


def test_a_move_to_a_port_that_is_taken_leaves_the_endpoint_where_it_is(
    target: LocalTarget, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match="is taken by"),
    ):
        deploy(target_of(tmp_path, other.getsockname()[1]), tmp_path, "2")
    assert target.invoke([ROW])[0].model_version == "1"


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path, store_uri(tmp_path), "penguins", "192.0.2.1", free_port())
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        deploy(target, tmp_path, "1")


def test_a_server_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path, "redis://somewhere", "penguins", port=free_port())
    with pytest.raises(UserError, match=r"ended by itself.*No capture store is known"):
        deploy(target, tmp_path, "1")
    assert target.status() is None


def test_a_version_without_sense_is_refused_by_the_server(
    target: LocalTarget, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    senseless = release(tmp_path, "2").folder
    with np.load(senseless / "compiled.npz") as arrays:
        np.savez(senseless / "compiled.npz", **{**arrays, "bias_1": np.full(3, np.nan)})
    with pytest.raises(UserError, match=r"cannot serve version 2.*no probabilities"):
        target.deploy("2", senseless, lambda step: None)
    assert target.invoke([ROW])[0].model_version == "1"


def test_the_version_that_serves_comes_back_with_a_restarted_server(
    target: LocalTarget, tmp_path: Path
) -> None:
    """A failed deployment leaves nothing behind that a restart would stumble over."""
    deploy(target, tmp_path, "1")
    with pytest.raises(UserError):
        target.deploy("2", tmp_path / "nowhere", lambda step: None)
    primary = json.loads((tmp_path / "deployment.json").read_text())["primary"]
    assert primary == {"version": "1", "folder": str(release(tmp_path, "1").folder)}


def test_deployments_at_once_take_turns(target: LocalTarget, port: int, tmp_path: Path) -> None:
    others = [target, *(target_of(tmp_path, port) for _ in range(2))]
    outcomes: list[int] = []
    threads = [
        threading.Thread(target=lambda o=other, v=version: outcomes.append(deploy(o, tmp_path, v)))
        for other, version in zip(others, "123", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert len(set(outcomes)) == 1


def test_it_is_small_and_quick_to_start(target: LocalTarget, tmp_path: Path) -> None:
    server = psutil.Process(deploy(target, tmp_path, "1"))
    times = server.cpu_times()
    assert times.user + times.system < 5
    assert server.memory_info().rss < 300e6


def test_it_takes_no_detour_through_a_proxy(
    target: LocalTarget, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    deploy(target_of(tmp_path, port), tmp_path, "1")


def test_the_deployment_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_deployment(tmp_path, Deployment(Release(str(number), tmp_path)))

    write_deployment(tmp_path, Deployment(Release("0", tmp_path)))
    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(300):
        assert json.loads((tmp_path / "deployment.json").read_text())["primary"]["version"]
    stop.set()
    thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["deployment.json"]
