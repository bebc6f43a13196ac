"""The server as processes: workers come and go, the port stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from mlschool_dagster.serving.worker_status import read_workers
from mlschool_dagster_tests.serving.server import (
    Server,
    free_port,
    running_server,
    serve,
    wait_for,
    workers_of,
)
from mlschool_dagster_tests.serving.tiny_model import ROW

JSON_TYPE = {"content-type": "application/json"}
VALID = json.dumps({"inputs": [ROW]}).encode()


def ended(processes: list[psutil.Process]) -> bool:
    return not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
    )


def answer(server: Server) -> httpx.Response:
    """The answer to a request over a connection of its own."""
    url = server.client.base_url.join("/invocations")
    return httpx.post(url, content=VALID, headers=JSON_TYPE, timeout=30)


def half_a_request(server: Server) -> socket.socket:
    url = server.client.base_url
    connection = socket.create_connection((url.host, url.port or 0), timeout=30)
    head = f"POST /invocations HTTP/1.1\r\nHost: {url.host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(VALID)}\r\n\r\n"
    connection.sendall(head.encode() + VALID[:10])
    return connection


def listens(server: Server) -> bool:
    url = server.client.base_url
    with socket.socket() as probe:
        return probe.connect_ex((url.host, url.port or 0)) == 0


def rest_of_the_answer(connection: socket.socket) -> bytes:
    connection.sendall(VALID[10:])
    received = b""
    while part := connection.recv(65536):
        received += part
    connection.close()
    return received


def test_every_worker_follows_within_a_second(tmp_path: Path) -> None:
    with running_server(tmp_path, workers=2) as server:
        wait_for(lambda: [w.version for w in read_workers(tmp_path)] == ["1", "1"])
        assert {w.pid for w in read_workers(tmp_path)} == {w.pid for w in server.workers}
        took = []
        for version in ("2", "1", "2"):
            serve(tmp_path, version)
            start = time.monotonic()
            wait_for(lambda v=version: [w.version for w in read_workers(tmp_path)] == [v, v])
            took.append(time.monotonic() - start)
        # The least of three, because the machine may be busy with something else.
        assert min(took) < 1


def test_a_worker_that_dies_is_replaced_and_nobody_is_turned_away(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        (worker,) = server.workers
        worker.kill()
        assert answer(server).json()["model_version"] == "1"
        assert ended([worker])
        wait_for(lambda: {w.pid for w in read_workers(tmp_path)} == {server.workers[0].pid})


@pytest.mark.slow
def test_workers_end_with_their_supervisor_and_the_port_is_free_again(tmp_path: Path) -> None:
    with running_server(tmp_path, workers=2) as server:
        workers = server.workers
        connection = half_a_request(server)
        server.process.kill()
        server.process.wait()
        # What has begun is finished all the same.
        assert rest_of_the_answer(connection).startswith(b"HTTP/1.1 200")
        psutil.wait_procs(workers, timeout=5)
        assert ended(workers)
        assert not listens(server)


def test_told_to_stop_it_finishes_what_it_has_begun_and_ends_well(tmp_path: Path) -> None:
    with running_server(tmp_path, workers=2) as server:
        workers = server.workers
        connection = half_a_request(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listens(server))
        assert rest_of_the_answer(connection).startswith(b"HTTP/1.1 200")
        assert server.process.wait(30) == 0
        assert ended(workers)
        assert read_workers(tmp_path) == []


@pytest.mark.slow
def test_told_to_stop_it_ends_in_time_whatever_clients_and_workers_do(tmp_path: Path) -> None:
    with running_server(tmp_path, workers=2) as server:
        workers = server.workers
        with half_a_request(server):
            workers[0].suspend()
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert time.monotonic() - start < 30
        assert ended(workers)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        (worker,) = server.workers
        worker.suspend()
        assert answer(server).status_code == 200
        assert ended([worker])


def test_a_worker_that_cannot_start_ends_the_server(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from mlschool_dagster.serving.supervisor import serve
from mlschool_dagster_tests.serving.server import server_config
home = Path({str(tmp_path)!r})
sys.exit(serve(server_config(home, "redis://somewhere", port={free_port()})))
"""
    server = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert server.returncode == 1
    assert "No capture store is known" in server.stderr


def test_the_supervisor_stays_small(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        assert psutil.Process(server.process.pid).memory_info().rss < 60e6
        assert os.getpid() not in [worker.pid for worker in workers_of(server.process.pid)]
