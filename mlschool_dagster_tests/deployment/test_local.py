"""An endpoint as a process: recognised, restarted, and never mistaken for another."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mlschool_dagster.deployment.endpoint import State
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.deployment.local_endpoints import (
    deploy,
    endpoint_of,
    record_of,
    runs,
)
from mlschool_dagster_tests.serving.server import (
    free_port,
    wait_for,
)
from mlschool_dagster_tests.serving.tiny_model import ROW


def test_a_swap_keeps_the_process(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    assert deploy(endpoint, tmp_path, "1") == deploy(endpoint, tmp_path, "2")


def test_the_status_names_process_port_and_log(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    pid = deploy(endpoint, tmp_path, "1")
    status = endpoint.status()
    assert psutil.Process(pid).is_running()
    assert status.url == f"http://127.0.0.1:{status.details['port']}"
    assert "server starts" in Path(str(status.details["log"])).read_text()


def test_it_outlives_the_process_that_deployed_it_and_is_found_again(
    port: int, tmp_path: Path
) -> None:
    code = (
        "from pathlib import Path\n"
        "from mlschool_dagster_tests.deployment.local_endpoints import deploy, endpoint_of\n"
        f"home = Path({str(tmp_path)!r})\n"
        f"deploy(endpoint_of(home, {port}), home, '1')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    again = endpoint_of(tmp_path, port)
    try:
        pid = record_of(tmp_path)["pid"]
        assert again.invoke([ROW])[0].model_version == "1"
        assert deploy(again, tmp_path, "2") == pid
        assert os.getsid(pid) == pid
    finally:
        again.stop()
    assert not runs(pid)


@pytest.mark.slow
def test_a_server_that_was_killed_is_started_anew(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    pid = deploy(endpoint, tmp_path, "1")
    endpoint.invoke([ROW], "before")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    assert endpoint.status().serving is None
    assert deploy(endpoint, tmp_path, "1") != pid
    assert endpoint.invoke([ROW])[0].model_version == "1"


@pytest.mark.slow
def test_a_pid_that_another_program_has_now_is_left_alone(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    # Started well after the server: the system counts start times in hundredths of a second.
    pid = deploy(endpoint, tmp_path, "1")
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            record = {**record_of(tmp_path), "pid": other.pid}
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not runs(pid))
            (tmp_path / "server.json").write_text(json.dumps(record))
            assert endpoint.status().serving is None
            endpoint.stop()
            assert deploy(endpoint, tmp_path, "2") not in (pid, other.pid)
            assert other.poll() is None
        finally:
            other.kill()


def test_a_damaged_record_is_replaced(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": 1}'):
        (tmp_path / "server.json").write_text(content)
        assert endpoint.status().serving is None
    deploy(endpoint, tmp_path, "1")
    assert endpoint.invoke([ROW])[0].model_version == "1"


def test_a_damaged_desired_state_is_never_overwritten(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "desired_state.json").write_text("{}\n")
    with pytest.raises(UserError, match=r"desired_state\.json is damaged; move it away"):
        deploy(endpoint, tmp_path, "1")
    assert (tmp_path / "desired_state.json").read_text() == "{}\n"


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
        endpoint = endpoint_of(tmp_path, port)
        named = rf"Port {port} .* is taken by .*process {other.pid}"
        with pytest.raises(UserError, match=named if Path("/proc").exists() else "another program"):
            deploy(endpoint, tmp_path, "1")
        assert other.poll() is None
        other.kill()
    assert endpoint.status().serving is None
    assert endpoint.status().state is State.ABSENT


def test_an_answer_from_another_program_is_no_prediction(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        endpoint = endpoint_of(tmp_path, int(other.stdout.readline()))
        with pytest.raises(UserError, match="is not the endpoint penguins"):
            endpoint.invoke([ROW])
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


def test_other_settings_restart_the_server(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    pid = deploy(endpoint, tmp_path, "1")
    moved = endpoint_of(tmp_path, free_port(), name="birds")
    try:
        assert moved.status().serving is None
        assert deploy(moved, tmp_path, "2") != pid
        status = moved.status()
        assert (status.name, status.serving) == ("birds", Plan(primary="2"))
        assert endpoint.status().serving is None
        assert not runs(pid)
    finally:
        moved.stop()


def test_a_move_to_a_port_that_is_taken_leaves_the_endpoint_where_it_is(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    deploy(endpoint, tmp_path, "1")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match="is taken by"),
    ):
        deploy(endpoint_of(tmp_path, other.getsockname()[1]), tmp_path, "2")
    assert endpoint.invoke([ROW])[0].model_version == "1"


def test_an_address_of_another_machine_is_reported(tmp_path: Path) -> None:
    endpoint = endpoint_of(tmp_path, free_port(), host="192.0.2.1")
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        deploy(endpoint, tmp_path, "1")


def test_a_server_that_cannot_start_reports_its_last_words(tmp_path: Path) -> None:
    endpoint = endpoint_of(tmp_path, free_port(), store_uri="redis://somewhere")
    with pytest.raises(UserError, match=r"ended by itself.*No capture store is known"):
        deploy(endpoint, tmp_path, "1")
    assert endpoint.status().serving is None


def test_what_a_deployment_would_fail_on_is_named_beforehand(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        endpoint = endpoint_of(tmp_path, port, store_uri="redis://somewhere")
        taken, store = endpoint.preflight()
    assert f"Port {port}" in taken.problem
    assert "MLSCHOOL_ENDPOINT_PORT" in taken.remedy
    assert "No capture store is known" in store.problem
    assert "MLSCHOOL_CAPTURE_STORE" in store.remedy
    kept = LocalEndpoint(endpoint_of(tmp_path, free_port()).config, "http://127.0.0.1:9")
    assert [finding.problem for finding in kept.preflight()] == [
        "Nothing answers at http://127.0.0.1:9."
    ]
    assert list(tmp_path.iterdir()) == []
