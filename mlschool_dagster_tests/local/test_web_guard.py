"""Only requests for this server, from its own pages, are let through."""

import asyncio
from typing import Any

import pytest

from mlschool_dagster.local.web_guard import Message, Receive, Scope, Send, WebGuard

HOST = "127.0.0.1:3000"
JSON = {"Content-Type": "application/json"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(
    method: str = "GET",
    target: str = "/",
    headers: "dict[str, str] | list[tuple[str, str]]" = {},  # noqa: B006 - only read
    kind: str = "http",
    host: str | None = HOST,
) -> int:
    """The status with which the guard answers; of a websocket, 200 if it is let through."""
    fields = list(headers.items()) if isinstance(headers, dict) else headers
    path, _, query = target.partition("?")
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in [*([("Host", host)] if host is not None else []), *fields]
        ],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(WebGuard(app, ["ML.example.org", "fd00::1"], graphql=True)(scope, receive, send))
    first: Any = sent[0]
    return 403 if first["type"] == "websocket.close" else int(first["status"])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:3000", "localhost", "LOCALHOST:80", "[::1]:3000", "ml.example.org", "[fd00::1]:1"],
)
def test_the_server_answers_to_its_own_names(host: str) -> None:
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example#",
     "localhost:x", "127.0.0.1:99999", "[::1", "localhost/", "localhost evil", "0.0.0.1", ":3000",
     "localhost?x", "127.1", "localhost."],
)  # fmt: skip
def test_the_server_answers_to_no_other_name(host: str | None) -> None:
    assert status(host=host) == 421
    assert status(host=host, kind="websocket") == 403


def test_two_names_are_none() -> None:
    assert status(headers=[("Host", HOST)]) == 421
    assert status(headers=[("Host", "evil.example")]) == 421


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("origin", "answer"),
    [
        (f"http://{HOST}", 200),
        (f"https://{HOST}", 200),
        ("http://127.0.0.1:8888", 403),
        ("http://localhost:3000", 403),
        ("http://evil.example", 403),
        (f"http://{HOST}.evil.example", 403),
        ("null", 403),
        ("", 403),
        (HOST, 403),
    ],
)
def test_an_origin_is_the_servers_own(kind: str, origin: str, answer: int) -> None:
    for method in ("GET", "POST", "OPTIONS") if kind == "http" else ("GET",):
        assert status(method, "/page", {"Origin": origin, **JSON}, kind) == answer


def test_a_link_of_another_site_opens_a_page_and_does_nothing_else() -> None:
    assert status(headers=LINK) == 200
    assert status(target="/runs/1", headers=LINK) == 200
    assert status("POST", "/page", LINK) == 403
    assert status(target="/graphql", headers={**LINK, "Accept": "text/html"}) == 403
    for site in ("cross-site", "same-site"):
        for changed in ({}, {"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors"}):
            expected = 403 if changed else 200
            assert status(headers={**LINK, "Sec-Fetch-Site": site, **changed}) == expected
    assert status(headers=IMAGE) == 403
    assert status(headers={"Sec-Fetch-Site": "cross-site"}, kind="websocket") == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_servers_own_pages_are_let_through(site: str) -> None:
    fields = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": site, **JSON}
    assert status("POST", "/graphql", fields) == 200
    assert status("GET", "/graphql", fields, "websocket") == 200


@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "/prefix/graphql"])
def test_graphql_takes_no_operation_that_a_tag_or_a_form_can_send(path: str) -> None:
    query = f"{path}?query=mutation{{launchRun}}"
    assert status("GET", query) == 405
    assert status("GET", query, {"Accept": "text/html"}) == 405
    assert status("HEAD", query) == 405
    assert status("GET", path) == 405
    assert status("GET", path, {"Accept": "text/html"}) == 200
    assert status("POST", path, JSON) == 200
    assert status("POST", path, {"Content-Type": "application/json; charset=utf-8"}) == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert status("POST", query, {"Content-Type": kind}) == 405
    assert status("POST", query) == 405
    assert status("POST", path, {"Content-Type": "text/plain;application/json"}) == 405
