"""Beyond this machine nobody is answered who does not present the token."""

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.auth import AuthMiddleware, require_token
from mlschool_dagster_tests.serving.server import server_config

ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound to it
TOKEN = secrets.token_urlsafe()


def ask(
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    method: str = "GET",
    url: str = "http://localhost:8080",
    **settings: Any,
) -> httpx.Response:
    """What a server that is configured with `settings` answers, asked at `url`."""

    async def answer(request: Request) -> Response:
        return PlainTextResponse("answered")

    methods = ["GET", "POST"]
    site = Starlette(
        routes=[Route(path, answer, methods=methods) for path in ("/ping", "/health", "/pings")]
    )
    config = server_config(Path(), "sqlite:///", **settings)

    async def work() -> httpx.Response:
        transport = httpx.ASGITransport(AuthMiddleware(site, config))
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
            return await client.request(method, path, headers=encoded)

    return asyncio.run(work())


def get(path: str, *authorizations: str) -> httpx.Response:
    return ask(path, [("Authorization", value) for value in authorizations], token=TOKEN)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_who_presents_the_token_is_answered(scheme: str) -> None:
    assert get("/health", f"{scheme} {TOKEN}").text == "answered"


@pytest.mark.parametrize(
    "authorizations",
    [
        [],
        [""],
        ["Bearer"],
        [TOKEN],
        [f"Basic {TOKEN}"],
        [f"Bearer {TOKEN[:-1]}"],
        [f"Bearer {TOKEN}x"],
        [f"Bearer {TOKEN}".upper()],
        ["Bearer \xff"],
        ["Bearer wrong", f"Bearer {TOKEN}"],
    ],
)
def test_anybody_else_is_refused_without_details(authorizations: list[str]) -> None:
    refused = get("/health", *authorizations)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in refused.text
    assert get("/nowhere", *authorizations).content == refused.content


def test_a_load_balancer_may_ask_whether_the_server_is_up() -> None:
    assert get("/ping").text == "answered"
    assert get("/pings").status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_on_this_machine_no_token_is_needed(host: str) -> None:
    require_token(host, None)
    require_token(host, TOKEN)


@pytest.mark.parametrize("host", [ANYWHERE, "::", "", "192.168.1.5", "endpoint.example.org"])
def test_elsewhere_a_token_is_required(host: str) -> None:
    with pytest.raises(UserError, match="MLSCHOOL_ENDPOINT_TOKEN"):
        require_token(host, None)
    require_token(host, TOKEN)


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "with spaces in its characters", "é" * 20]
)
@pytest.mark.parametrize("host", ["127.0.0.1", ANYWHERE])
def test_a_token_that_protects_nothing_is_refused(host: str, token: str) -> None:
    with pytest.raises(UserError, match="protects nothing") as caught:
        require_token(host, token)
    assert not token or token not in str(caught.value)


OWN = ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8080"]
FOREIGN = [
    *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("10.0.0.1", "[::2]", "localhost.", "xlocalhost", "", ":8080", "[::1", "endpoint"),
]


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
def test_a_server_on_this_machine_answers_to_its_own_names_only(host: str, protected: bool) -> None:
    token = TOKEN if protected else None
    headers = [("Host", host), ("Authorization", f"Bearer {TOKEN}")]
    assert ask("/health", headers, token=token).status_code == (200 if host in OWN else 421)
    assert ask("/ping", headers, token=token).status_code == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({"hosts": ("ml.example.org",)}, "ml.example.org", 200),
        ({"hosts": ("ml.example.org",)}, "ML.example.org:443", 200),
        ({"hosts": ("ml.example.org",)}, "evil.example", 421),
        ({"host": "192.168.1.5"}, "192.168.1.5:8080", 200),
        ({"host": "192.168.1.5"}, "evil.example", 421),
        ({"host": ANYWHERE}, "whatever.example", 200),
        ({"host": ANYWHERE, "hosts": ("ml.example.org",)}, "localhost", 200),
        ({"host": ANYWHERE, "hosts": ("ml.example.org",)}, "evil.example", 421),
    ],
)
def test_further_names_are_a_setting(settings: dict[str, Any], host: str, status: int) -> None:
    assert ask("/health", [("Host", host)], **settings).status_code == status


LINK = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", [("Origin", "http://localhost:8080")], 200),
        ("POST", [("Origin", "https://LOCALHOST:8080")], 200),
        ("POST", [("Origin", "http://localhost:3000")], 403),
        ("POST", [("Origin", "http://evil.example")], 403),
        ("POST", [("Origin", "null")], 403),
        ("POST", [("Origin", "")], 403),
        ("POST", [("Origin", "file://localhost:8080")], 403),
        ("POST", [("Sec-Fetch-Site", "same-origin")], 200),
        ("POST", [("Sec-Fetch-Site", "cross-site")], 403),
        ("POST", [("Sec-Fetch-Site", "cross-site"), *LINK], 403),
        ("GET", [("Sec-Fetch-Site", "none"), *LINK], 200),
        ("GET", [("Sec-Fetch-Site", "cross-site"), *LINK], 200),
        ("GET", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")], 403),
        ("GET", [("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Dest", "image")], 403),
    ],
)
def test_pages_of_other_sites_may_link_here_and_no_more(
    method: str, headers: Sequence[tuple[str, str]], status: int
) -> None:
    assert ask("/health", headers, method).status_code == status
