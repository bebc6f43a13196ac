"""The life of a server: starting, following, refusing to start, logging, stopping."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mlschool_dagster.capture.records import Role
from mlschool_dagster.serving.desired_state import (
    DESIRED_STATE_FILE,
    DesiredState,
    VersionFolder,
    write_desired_state,
)
from mlschool_dagster_tests.serving.server import (
    free_port,
    running_server,
    serve,
    store_uri,
    wait_for,
)
from mlschool_dagster_tests.serving.store_outage import Place
from mlschool_dagster_tests.serving.tiny_model import ROW


def test_it_waits_for_a_version_and_serves_it_within_a_second(tmp_path: Path) -> None:
    with running_server(tmp_path, version=None) as server:
        assert server.client.get("/ping").status_code == 503
        assert server.client.get("/version").status_code == 503
        unavailable = server.invoke([ROW])
        assert unavailable.status_code == 503
        assert unavailable.headers["retry-after"]
        serve(tmp_path, "2")
        wait_for(lambda: server.client.get("/ping").status_code == 200)
        assert server.invoke([ROW]).json()["model_version"] == "2"


def test_a_version_that_does_not_load_is_reported_and_the_old_one_goes_on(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        missing = VersionFolder("2", tmp_path / "nowhere")
        write_desired_state(tmp_path, DesiredState({Role.PRIMARY: missing}))
        wait_for(lambda: server.health()["failure"] is not None)
        failure = server.health()["failure"]
        assert (failure["role"], failure["version"]) == ("primary", "2")
        assert "cannot be read" in failure["reason"]
        assert server.invoke([ROW]).json()["model_version"] == "1"
        serve(tmp_path, "3")
        wait_for(lambda: server.health()["version"] == "3")
        assert server.health()["failure"] is None
        with (tmp_path / DESIRED_STATE_FILE).open("a") as file:
            file.write("{\n")
        wait_for(lambda: server.health()["failure"] is not None)
        assert "is damaged" in server.health()["failure"]["reason"]
        assert server.invoke([ROW]).json()["model_version"] == "3"


def test_a_request_that_cannot_be_captured_is_not_answered(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        # Neither the store nor the write-ahead log that stands in for it can take anything.
        with sqlite3.connect(tmp_path / "captures.db") as connection:
            connection.execute("ALTER TABLE captures RENAME TO elsewhere")
        (tmp_path / "spill").touch()
        refused = server.invoke([ROW])
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "predictions" not in refused.json()
        (tmp_path / "spill").unlink()
        assert server.invoke([ROW], x_request_id="spilled").status_code == 200
        with sqlite3.connect(tmp_path / "captures.db") as connection:
            connection.execute("ALTER TABLE elsewhere RENAME TO captures")
        wait_for(lambda: [c.event_id for c in server.captures()] == ["spilled"])


def test_told_to_stop_it_finishes_what_it_has_begun(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        answered: list[str] = []
        begun = threading.Event()

        def work(_: int) -> None:
            with httpx.Client(base_url=server.client.base_url) as client:
                while True:
                    try:
                        answer = client.post("/invocations", json={"inputs": [ROW]})
                    except httpx.TransportError:
                        return
                    if answer.status_code == 200:
                        answered.append(answer.json()["predictions"][0]["event_id"])
                    if len(answered) > 50:
                        begun.set()

        with ThreadPoolExecutor(4) as threads:
            working = threads.map(work, range(4))
            assert begun.wait(30)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)
            list(working)
        assert sorted(c.event_id for c in server.captures()) == sorted(answered)
        assert "server stopped" in server.log


def test_its_log_is_structured_and_never_holds_a_payload(tmp_path: Path) -> None:
    with running_server(tmp_path, options=["--access-log"]) as server:
        server.invoke([{**ROW, "body_mass_g": 4321.5}], x_request_id="logged-request")
        server.invoke([{**ROW, "island": "Atlantis"}])
        server.client.post(
            "/invocations", content=b"Atlantis", headers={"content-type": "application/json"}
        )
        wait_for(lambda: server.log.count("request refused") == 2)
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert all({"at", "level", "message"} <= line.keys() for line in lines)
    answered = [line for line in lines if line.get("event_id") == "logged-request"]
    assert [(line["status"], line["version"], line["rows"]) for line in answered] == [(200, "1", 1)]
    assert "4321.5" not in server.log
    assert "Atlantis" not in server.log


def test_a_port_that_is_taken_is_reported(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = start_and_wait(tmp_path, port, store_uri(tmp_path))
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_a_home_has_one_server_and_what_is_not_its_own_stays(tmp_path: Path) -> None:
    foreign = [tmp_path / "metrics/report.csv", tmp_path / "workers/names.json"]
    for file in foreign:
        file.parent.mkdir()
        file.write_text("[mine")
    with running_server(tmp_path) as server:
        server.invoke([ROW])
        second = start_and_wait(tmp_path, free_port(), store_uri(tmp_path))
        assert second.returncode == 1
        assert f"process {server.process.pid}" in second.stderr
        assert "runs with the home folder" in second.stderr
        counted = 'mlschool_requests_total{role="primary",status="200",version="1"} 1.0'
        assert counted in server.client.get("/metrics").text
        server.process.kill()
        server.process.wait()
    with running_server(tmp_path, None) as server:
        assert counted not in server.client.get("/metrics").text
        assert server.invoke([ROW]).status_code == 200
    assert [file.read_text() for file in foreign] == ["[mine", "[mine"]


@pytest.fixture
def small_home(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of two megabytes; only an administrator can make one."""
    home = tmp_path / "home"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield home
    subprocess.run(["umount", "--lazy", home], check=True)


def fill(home: Path) -> Path:
    """Leave no byte of room in `home`; the file to delete for some."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler


@pytest.mark.slow
def test_a_full_home_stops_nothing_while_the_store_is_there(
    small_home: Path, tmp_path: Path
) -> None:
    store = store_uri(tmp_path)
    with running_server(small_home, store=store, workers=2) as server:
        workers = server.workers
        filler = fill(small_home)
        for round_ in range(2):
            for number in range(100):
                answer = server.invoke([ROW], x_request_id=f"{round_}-{number}")
                assert answer.status_code == 200, answer.text
            assert server.client.get("/metrics").status_code == 200
            assert server.client.get("/ping").status_code == 200
            if round_ == 0:
                assert server.workers == workers
                workers[0].kill()
                wait_for(lambda: len(set(server.workers) - {workers[0]}) == 2)
        filler.unlink()
        assert len(server.captures()) == 200


def test_a_full_home_and_no_store_is_reported_with_a_time_to_come_back(
    small_home: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    with running_server(small_home, store=place.uri) as server:
        place.take_offline()
        filler = fill(small_home)
        for _ in range(20):
            answer = server.invoke([ROW])
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        filler.unlink()
        wait_for(lambda: server.invoke([ROW]).status_code == 200)
        place.bring_online()
        wait_for(lambda: server.health()["spilled_bytes"] == 0)


def test_a_store_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    ended = start_and_wait(tmp_path, free_port(), "redis://somewhere")
    assert ended.returncode == 1
    assert "No capture store is known" in ended.stderr


def start_and_wait(home: Path, port: int, store: str) -> "subprocess.CompletedProcess[str]":
    command = [
        *(sys.executable, "-m", "mlschool_dagster.serving", "--home", str(home)),
        *("--port", str(port), "--store", store, "--name", "penguins"),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_its_process_imports_no_training_library() -> None:
    code = (
        "import sys, mlschool_dagster.serving.__main__; "
        "heavy = {'dagster', 'evidently', 'jax', 'keras', 'mlflow', 'pandas', 'scipy', 'sklearn'}; "
        "print(heavy & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "set()"
