"""The server of the report pages serves pages, and nothing else of what is around them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlschool_dagster.local import report_server
from mlschool_dagster_tests.platform import foreign_environment
from mlschool_dagster_tests.serving.server import free_port

PAGE = "<!doctype html><p>report</p>"
SECRET = "secret"  # noqa: S105 - what must not be served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, and around them all kinds of things that are none."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.html").write_text(SECRET)
    folder = tmp_path_factory.mktemp("files")
    (folder / "dashboard.html").write_text(PAGE)
    (folder / "windows" / "2026-01-01T00").mkdir(parents=True)
    (folder / "windows" / "2026-01-01T00" / "drift report ü.html").write_text(PAGE)
    (folder / "data.parquet").write_text(SECRET)
    (folder / ".hidden.html").write_text(SECRET)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "page.html").write_text(SECRET)
    (folder / "folder.html").mkdir()
    (folder / "link.html").symlink_to(outside / "secret.html")
    (folder / "inner-link.html").symlink_to(folder / "dashboard.html")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.html")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a report server for `folder`."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlschool_dagster.local.report_server",
        "--port", str(port), "--folder", str(folder),
    ]  # fmt: skip
    with subprocess.Popen(command, env=foreign_environment()) as process:
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            assert process.poll() is None
        yield url
        process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    "path", ["/dashboard.html", "/windows/2026-01-01T00/drift%20report%20%C3%BC.html"]
)
def test_a_page_is_served_under_a_policy(url: str, path: str) -> None:
    answer = httpx.get(f"{url}{path}")
    assert (answer.status_code, answer.text) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == report_server.POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = httpx.head(f"{url}{path}")
    assert head.status_code == 200
    assert head.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/windows", "/windows/", "/windows/2026-01-01T00/", "/data.parquet", "/.hidden.html",
        "/.hidden/page.html", "/folder.html", "/link.html", "/inner-link.html",
        "/linked/secret.html", "/pipe.html", "/none.html", "//dashboard.html",
        "/../outside/secret.html", "/%2e%2e/outside0/secret.html", "/windows/..%2fdashboard.html",
        "/a%00.html", "/%ff.html", "/dashboard.html/", "/dashboard.html%00",
        "/" + "a" * 5000 + ".html",
    ],
)  # fmt: skip
def test_what_is_no_page_is_not_there(url: str, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        # As it is: a client would make the path a proper one.
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 404 ")
    assert SECRET not in answer
    assert "Index of" not in answer


def test_the_first_page_lists_nothing(url: str) -> None:
    answer = httpx.get(url)
    assert answer.is_success
    assert "windows" not in answer.text


def test_another_name_or_site_gets_nothing(url: str) -> None:
    page = f"{url}/dashboard.html"
    assert httpx.get(page, headers={"Host": "evil.example"}).status_code == 421
    assert httpx.get(page, headers={"Origin": "http://evil.example"}).status_code == 403
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert httpx.get(page, headers=image).status_code == 403
    assert httpx.post(page).status_code == 405


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nA"])
def test_a_silent_client_is_let_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    import asyncio

    import uvicorn

    monkeypatch.setattr(report_server, "CONNECTION_SECONDS", 0.2)

    async def converse() -> bytes:
        config = uvicorn.Config(
            report_server.application(str(folder)),
            http=report_server.BoundedProtocol,
            lifespan="off",
            port=free_port(),
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
        writer.write(sent)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            server.should_exit = True
            await serving

    assert asyncio.run(converse()) == b""
