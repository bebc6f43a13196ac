"""Beyond this machine nobody is answered who does not present the token."""

import asyncio
import secrets

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.access import BearerToken, require_token

ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound to it
TOKEN = secrets.token_urlsafe()


def get(path: str, *authorizations: str) -> httpx.Response:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("answered")

    site = Starlette(routes=[Route(path, answer) for path in ("/ping", "/health", "/pings")])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(BearerToken(site, TOKEN))
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            headers = [(b"Authorization", value.encode("latin-1")) for value in authorizations]
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


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
def test_anybody_else_is_refused_and_told_nothing(authorizations: list[str]) -> None:
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
