"""The page at /docs works in a browser, with or without a token, and needs no other site."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright

from mlschool_dagster.serving import docs_page
from mlschool_dagster_tests.serving.server import Server, running_server

CHROMIUM = shutil.which("chromium")
STATIC = Path(docs_page.__file__).with_name("static")
TOKEN = "a token of sixteen characters or more".replace(" ", "-")


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "with a token"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("home"), token=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def stranger(server: Server) -> Iterator[httpx.Client]:
    """A client that has no token."""
    with httpx.Client(base_url=server.client.base_url) as client:
        yield client


def files_of(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(docs/[^"]+)"', page)


def test_the_page_and_its_files_need_no_token_and_the_document_does(
    server: Server, stranger: httpx.Client
) -> None:
    page = stranger.get("/docs")
    assert page.status_code == 200
    assert len(files_of(page.text)) == 4
    for path in ("docs", *files_of(page.text)):
        answer = stranger.get(f"/{path}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
    needs_token = "authorization" in server.client.headers
    assert stranger.get("/openapi.json").status_code == (401 if needs_token else 200)
    assert stranger.get("/docs/../metrics").status_code == (401 if needs_token else 200)
    for path in ("/docs/README.md", "/docs/..%2fapp.py", "/docs/a/b"):
        assert stranger.get(path).status_code == 404


def test_files_are_compressed_for_who_takes_that_and_sent_once(stranger: httpx.Client) -> None:
    for path in ("docs", *files_of(stranger.get("/docs").text)):
        plain = stranger.get(f"/{path}", headers={"accept-encoding": "identity"})
        compressed = stranger.get(f"/{path}", headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in plain.headers
        assert compressed.headers["content-encoding"] == "gzip"
        assert plain.content == compressed.content
        assert int(compressed.headers["content-length"]) < len(plain.content)
        tag = plain.headers["etag"]
        for known in (tag, f'"another", W/{tag}'):
            again = stranger.get(f"/{path}", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
        assert stranger.get(f"/{path}", headers={"if-none-match": '"x"'}).status_code == 200
        has_version = re.search(r"\d\.\d", path) is not None
        assert ("immutable" in plain.headers["cache-control"]) == has_version
        head = stranger.head(f"/{path}", headers={"accept-encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")


def test_what_is_shipped_is_what_its_readme_says() -> None:
    said = (STATIC / "swagger-ui/README.md").read_text()
    shipped = sorted((STATIC / "swagger-ui").glob("*.gz"))
    assert len(shipped) == 2
    for path in shipped:
        assert sha256(gzip.decompress(path.read_bytes())).hexdigest() in said
        assert path.name.removesuffix(".gz") in (STATIC / "docs.html").read_text()
    assert sum(path.stat().st_size for path in STATIC.rglob("*")) < 1_500_000


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser.new_page()
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_person_tries_a_request(server: Server, browser_page: Page) -> None:
    page = browser_page
    said: list[str] = []
    asked: list[str] = []
    page.on(
        "console", lambda message: said.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.client.base_url}/docs")
    if "authorization" in server.client.headers:
        page.fill("#token", "wrong")
        page.click("#token-form button")
        page.wait_for_selector("text=Send the token")
        page.fill("#token", TOKEN)
        page.click("#token-form button")
        said.clear()
    page.click("#operations-default-predict button.execute")
    answer = page.locator("#operations-default-predict .live-responses-table tbody")
    assert answer.locator(".response-col_status").first.inner_text().startswith("200")
    shown = answer.locator("pre.microlight").first.inner_text()
    assert json.loads(shown)["model_version"] == "1"
    assert said == []
    assert {
        url for url in asked if not url.startswith((str(server.client.base_url), "data:"))
    } == set()
    assert len(server.captures()) == 1
