"""An endpoint as a process: found again, started anew, and never mistaken for another."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.deployment import Plan, Release
from mlschool_dagster.serving.process import ServerConfig
from mlschool_dagster.targets.base import EndpointStatus, Invoke
from mlschool_dagster.targets.local import LocalTarget
from mlschool_dagster_tests.serving.server import (
    free_port,
    release,
    running_server,
    store_uri,
    wait_for,
    workers_of,
)
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def target(tmp_path: Path, port: int) -> Iterator[LocalTarget]:
    target = target_of(tmp_path, port)
    yield target
    target.stop()


def target_of(home: Path, port: int, **settings: Any) -> LocalTarget:
    return LocalTarget(
        ServerConfig(
            **{"store_uri": store_uri(home), "name": "penguins", **settings}, home=home, port=port
        )
    )


def deploy(target: LocalTarget, home: Path, version: str) -> int:
    """Deploy `version` and return the server's pid."""
    return deploy_release(target, release(home, version))


def deploy_release(target: LocalTarget, wanted: Release) -> int:
    status = target.deploy(Plan(wanted), "a test", "because", lambda step: None)
    return int(status.details["pid"])


def target_of_same(target: LocalTarget, **changes: Any) -> LocalTarget:
    """Another client of the endpoint of `target`."""
    return LocalTarget(replace(target.config, **changes))


def served(target: LocalTarget) -> EndpointStatus:
    status = target.status()
    assert status is not None
    return status


def spoil(wanted: Release) -> None:
    """Let the version predict nothing of sense."""
    with np.load(wanted.folder / "compiled.npz") as arrays:
        np.savez(wanted.folder / "compiled.npz", **{**arrays, "bias_1": np.full(3, np.nan)})


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
        "from pathlib import Path; from mlschool_dagster_tests.targets.test_local import *; "
        f"deploy_release(target_of(Path({str(tmp_path)!r}), {port}), "
        f"Release('1', Path({str(folder)!r})))"
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


@pytest.mark.slow
def test_a_server_that_was_killed_is_started_anew(target: LocalTarget, tmp_path: Path) -> None:
    pid = deploy(target, tmp_path, "1")
    target.invoke([ROW], "before")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    assert target.status() is None
    assert deploy(target, tmp_path, "1") != pid
    assert target.invoke([ROW])[0].model_version == "1"


@pytest.mark.slow
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


def test_a_damaged_record_is_replaced(target: LocalTarget, tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": 1}'):
        (tmp_path / "server.json").write_text(content)
        assert target.status() is None
    deploy(target, tmp_path, "1")
    assert target.invoke([ROW])[0].model_version == "1"


def test_a_damaged_history_is_never_overwritten(target: LocalTarget, tmp_path: Path) -> None:
    (tmp_path / "deployments.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"deployments\.jsonl is damaged; move it away"):
        deploy(target, tmp_path, "1")
    assert (tmp_path / "deployments.jsonl").read_text() == "{}\n"


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
    assert target.history() == []


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
    target = target_of(tmp_path, free_port(), host="192.0.2.1")
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        deploy(target, tmp_path, "1")


def test_a_server_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    target = target_of(tmp_path, free_port(), store_uri="redis://somewhere")
    with pytest.raises(UserError, match=r"ended by itself.*No capture store is known"):
        deploy(target, tmp_path, "1")
    assert target.status() is None


def test_a_version_without_sense_is_refused_by_the_server(
    target: LocalTarget, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    senseless = release(tmp_path, "2")
    spoil(senseless)
    with pytest.raises(UserError, match=r"cannot serve version 2.*no probabilities"):
        deploy_release(target, senseless)
    assert target.invoke([ROW])[0].model_version == "1"


@pytest.mark.slow
def test_what_serves_comes_back_with_a_restarted_server(
    target: LocalTarget, tmp_path: Path
) -> None:
    """A failed deployment leaves nothing behind that a restart would stumble over."""
    pid = deploy(target, tmp_path, "1")
    with pytest.raises(UserError):
        deploy_release(target, Release("2", tmp_path / "nowhere"))
    since = served(target).since
    os.kill(pid, signal.SIGKILL)
    with running_server(tmp_path, version=None) as again:
        assert again.invoke([ROW]).json()["model_version"] == "1"
        assert datetime.fromisoformat(again.client.get("/version").json()["since"]) == since


@pytest.mark.slow
def test_a_deployer_that_dies_leaves_what_served(
    target: LocalTarget, port: int, tmp_path: Path
) -> None:
    deploy(target, tmp_path, "1")
    code = f"""
import os, signal
from pathlib import Path
from mlschool_dagster.serving.deployment import Plan
from mlschool_dagster_tests.targets.test_local import release, target_of
home = Path({str(tmp_path)!r})
die = lambda candidate, invoke: os.kill(os.getpid(), signal.SIGKILL)
target_of(home, {port}).deploy(Plan(release(home, "2")), "", "", print, die)
"""
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert target.invoke([ROW])[0].model_version == "1"
    target.stop()
    with running_server(tmp_path, version=None) as rebooted:
        assert rebooted.invoke([ROW]).json()["model_version"] == "1"
    deploy(target, tmp_path, "2")
    assert target.invoke([ROW])[0].model_version == "2"


def test_every_worker_serves_what_was_deployed(tmp_path: Path) -> None:
    target = target_of(tmp_path, free_port(), workers=2)
    # Each new connection may meet another worker.
    with httpx.Client(base_url=target.config.url, headers={"Connection": "close"}) as client:
        try:
            for version in ("1", "2", "1"):
                deploy(target, tmp_path, version)
                answers = [client.post("/invocations", json={"inputs": [ROW]}) for _ in range(20)]
                assert {answer.json()["model_version"] for answer in answers} == {version}
            assert served(target).details["workers"] == 2
        finally:
            target.stop()


def test_a_shadow_is_captured_beside_each_answer(target: LocalTarget, tmp_path: Path) -> None:
    one, two = release(tmp_path, "1"), release(tmp_path, "2")
    target.deploy(Plan(one, shadow=two), "a test", "because", lambda step: None)
    rows = [{**ROW, "body_mass_g": 3000 + 100 * i} for i in range(10)]
    answers = [target.invoke([row], f"event-{i}")[0] for i, row in enumerate(rows)]
    assert {answer.model_version for answer in answers} == {"1"}
    store = open_store(target.config.store_uri)

    def shadows() -> dict[str, dict[str, float]]:
        frames = [store.read_shadow(window) for window in store.windows()]
        found = [row for frame in frames for row in frame.to_dict("records")]
        assert {row["model_version"] for row in found} <= {"2"}
        return {row["event_id"]: row["probabilities"] for row in found}

    wait_for(lambda: len(shadows()) == len(rows))
    beside = shadows()
    for answer, shares in zip(answers, tiny_model(2).probabilities(rows), strict=True):
        assert list(beside[answer.event_id].values()) == pytest.approx(list(shares))
    store.close()


@pytest.mark.slow
def test_a_worker_killed_under_way_does_not_stop_a_deployment(
    target: LocalTarget, tmp_path: Path
) -> None:
    pid = deploy(target, tmp_path, "1")

    def verify(candidate: Release, invoke: Invoke) -> None:
        for worker in workers_of(pid):
            worker.kill()

    plan = Plan(release(tmp_path, "2"))
    assert target.deploy(plan, "", "", lambda step: None, verify).version == "2"
    assert target.invoke([ROW])[0].model_version == "2"


def test_a_server_that_is_kept_by_others_follows_and_is_left_alone(tmp_path: Path) -> None:
    with running_server(tmp_path, version=None) as server:
        config = ServerConfig(tmp_path, server.store_uri, "penguins")
        target = LocalTarget(config, str(server.client.base_url))
        assert target.status() is None
        for version in ("1", "2"):
            plan = Plan(release(tmp_path, version))
            target.deploy(plan, "a test", "because", lambda step: None)
            assert server.invoke([ROW]).json()["model_version"] == version
        assert served(target).url == str(server.client.base_url)
        with pytest.raises(UserError, match="cannot serve version 3"):
            senseless = release(tmp_path, "3")
            spoil(senseless)
            deploy_release(target, senseless)
        target.stop()
        assert server.invoke([ROW]).json()["model_version"] == "2"
    assert target.status() is None


def test_a_server_of_others_that_does_not_follow_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlschool_dagster.targets.local.DEADLINE_SECONDS", 0.2)
    target = LocalTarget(
        ServerConfig(tmp_path, store_uri(tmp_path), "penguins"), f"http://127.0.0.1:{free_port()}"
    )
    with pytest.raises(UserError, match="make sure that its server runs with the home folder"):
        deploy(target, tmp_path, "1")


def test_it_presents_its_token_and_tells_it_to_nobody(tmp_path: Path) -> None:
    target = target_of(tmp_path, free_port(), token="open-sesame-0123456789-abcdefghij")  # noqa: S106
    try:
        pid = deploy(target, tmp_path, "1")
        assert target.invoke([ROW])[0].model_version == "1"
        with pytest.raises(UserError):
            target_of_same(target, token=None).invoke([ROW])
        told = [path.read_text() for path in tmp_path.glob("*.json*")]
        processes = [psutil.Process(pid), *psutil.Process(pid).children()]
        told += [" ".join(process.cmdline()) for process in processes]
        assert not any(
            "open-sesame-0123456789-abcdefghij" in text for text in (*told, target.log.read_text())
        )
    finally:
        target.stop()


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
    supervisor = psutil.Process(deploy(target, tmp_path, "1"))
    processes = [supervisor, *supervisor.children(recursive=True)]
    seconds = [sum(process.cpu_times()[:2]) for process in processes]
    assert sum(seconds) < 5
    assert sum(process.memory_info().rss for process in processes) < 300e6


def test_it_takes_no_detour_through_a_proxy(
    target: LocalTarget, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    deploy(target_of(tmp_path, port), tmp_path, "1")
