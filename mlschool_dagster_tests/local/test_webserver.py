"""Dagster's webserver as the platform starts it: works in a browser, and for no other site."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlschool_dagster_tests.platform import foreign_environment
from mlschool_dagster_tests.serving.server import free_port

CHROMIUM = shutil.which("chromium")
LOCATION = """
import dagster as dg

@dg.op(out=dg.Out(dg.Nothing))
def delete_everything():
    pass

@dg.job
def dangerous_job():
    delete_everything()

definitions = dg.Definitions(jobs=[dangerous_job])
"""
LAUNCH = """mutation { launchRun(executionParams: {mode: "default", runConfigData: {}, selector: {
repositoryLocationName: "location.py", repositoryName: "__repository__", jobName: "dangerous_job"}})
{ __typename } }"""
RUNS = "{ runsOrError { ... on Runs { results { runId } } } }"
TIMEOUT = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a webserver whose code location has one job."""
    folder = tmp_path_factory.mktemp("webserver")
    (folder / "location.py").write_text(LOCATION)
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    port = free_port()
    command = [
        sys.executable, "-m", "mlschool_dagster.local.webserver", "--host", "127.0.0.1",
        "--port", str(port), "--python-file", str(folder / "location.py"),
    ]  # fmt: skip
    environment = {**foreign_environment(), "DAGSTER_HOME": str(folder)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(f"{url}/server_info", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                continue
        yield url
        process.terminate()


def ask(server: str, query: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server}/graphql",
        json={"query": query},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=TIMEOUT,
    )


def runs(server: str) -> int:
    return len(ask(server, RUNS).json()["data"]["runsOrError"]["results"])


def upgraded(server: str, host: str, origin: str) -> bytes:
    """The first line of the answer to a websocket's opening."""
    fields = {
        "Host": host,
        "Origin": origin,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "graphql-ws",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2])), 30) as connection:
        connection.sendall(f"GET /graphql HTTP/1.1\r\n{head}\r\n".encode())
        return connection.recv(4096).split(b"\r\n")[0]


def test_another_site_starts_no_run(server: str) -> None:
    before = runs(server)
    query = {"query": LAUNCH}
    # What <img src=...> sends, with and without the fields of a browser of today.
    assert httpx.get(f"{server}/graphql", params=query).status_code == 405
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert httpx.get(f"{server}/graphql", params=query, headers=image).status_code == 403
    # What a form sends, and what a program of the page does.
    assert httpx.post(f"{server}/graphql", params=query, data={"a": "b"}).status_code == 405
    assert ask(server, LAUNCH, Origin="http://evil.example").status_code == 403
    assert ask(server, LAUNCH, Origin="null").status_code == 403
    # After its name has been bound to this address.
    assert ask(server, LAUNCH, Host="evil.example").status_code == 421
    assert ask(server, RUNS, Host="evil.example", Origin="http://evil.example").status_code == 421
    assert httpx.get(server, headers={"Host": "evil.example"}).status_code == 421
    assert runs(server) == before


def test_another_site_hears_nothing(server: str) -> None:
    own = server.removeprefix("http://")
    assert b" 101 " in upgraded(server, own, server)
    assert b" 403 " in upgraded(server, own, "http://evil.example")
    assert b" 403 " in upgraded(server, "evil.example", "http://evil.example")


def test_its_own_page_starts_a_run(server: str) -> None:
    before = runs(server)
    launched = ask(server, LAUNCH, Origin=server, Sec_Fetch_Site="same-origin").json()
    assert launched["data"]["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert runs(server) == before + 1


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_works_in_a_browser_and_another_site_does_not(server: str) -> None:
    from playwright.sync_api import sync_playwright

    before = runs(server)
    complaints: list[str] = []
    sockets: list[Any] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.on("websocket", lambda opened: sockets.append(opened))
        page.on(
            "response",
            lambda answer: complaints.append(answer.url) if answer.status >= 400 else None,
        )
        page.goto(f"{server}/jobs")
        page.get_by_text("dangerous_job").first.wait_for(timeout=TIMEOUT * 1000)
        launched = page.evaluate(
            """query => fetch('/graphql', {method: 'POST', body: JSON.stringify({query}),
            headers: {'Content-Type': 'application/json'}}).then(answer => answer.json())""",
            LAUNCH.replace("__typename", "... on LaunchRunSuccess { run { runId } }"),
        )
        page.goto(f"{server}/runs/{launched['data']['launchRun']['run']['runId']}")
        page.get_by_text("Run queued").first.wait_for(timeout=TIMEOUT * 1000)
        assert complaints == []
        # The run's page is notified of the run's events as they happen.
        assert [socket.url for socket in sockets] != []
        other = browser.new_page()
        other.route(
            "http://evil.example/",
            lambda route: route.fulfill(content_type="text/html", body=evil(server)),
        )
        other.goto("http://evil.example/")
        other.wait_for_function("document.title == 'done'", timeout=TIMEOUT * 1000)
        assert json.loads(other.inner_text("#heard")) == ["error", "failed", "closed"]
        browser.close()
    assert runs(server) == before + 1


def evil(server: str) -> str:
    """A page that launches the job by a tag, by a request and by a websocket."""
    body = json.dumps({"query": LAUNCH})
    return f"""<pre id=heard></pre><script>
    const heard = [];
    const note = what => {{
        heard.push(what);
        if (heard.length == 3) {{
            document.getElementById('heard').textContent = JSON.stringify(heard);
            document.title = 'done';
        }} else {{ steps[heard.length](); }}
    }};
    const steps = [
        () => {{
            const image = new Image();
            image.onerror = () => note('error');
            image.src = '{server}/graphql?query=' + encodeURIComponent({json.dumps(LAUNCH)});
        }},
        () => fetch('{server}/graphql', {{
            method: 'POST', headers: {{'Content-Type': 'application/json'}},
            body: {json.dumps(body)},
        }}).then(() => note('answered'), () => note('failed')),
        () => {{
            const socket = new WebSocket('{server.replace("http", "ws")}/graphql', 'graphql-ws');
            socket.onopen = () => note('open');
            socket.onclose = () => note('closed');
        }},
    ];
    steps[0]();
    </script>"""
