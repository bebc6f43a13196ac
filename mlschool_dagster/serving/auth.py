"""Authentication: a request must name the server, present its token and come from no other site.

A server on loopback is reachable by every page that its user's browser shows. So a request must
name the server (against DNS rebinding) and must not come from another site's page (against
cross-site request forgery).
"""

import hmac
from collections.abc import Collection, Mapping
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.responses import (
    COUNT_ANSWER,
    DOCS_FOLDER,
    DOCS_PATH,
    OPEN_PATHS,
    Headers,
    error_body,
    send_json,
)
from mlschool_dagster.serving.server_config import TOKEN_VARIABLE, ServerConfig

MIN_TOKEN = 16
"""Fewest characters of a token."""
CHALLENGE = ((b"www-authenticate", b"Bearer"),)
LOOPBACK = frozenset({b"localhost", b"127.0.0.1", b"::1"})

_UNAUTHORIZED = error_body("Send the token of this endpoint as Authorization: Bearer <token>.")
_MISDIRECTED = error_body(
    "The endpoint is not known by the name in the header Host; use the address that it was started "
    "with, or add the name to MLSCHOOL_HOSTS."
)
_CROSS_SITE = error_body("Pages of other sites may not use the endpoint.")

Refusal = tuple[int, bytes, Headers]


class AuthMiddleware:
    """An ASGI application that lets through to `app` what may talk to the server of `config`.

    Refused is what gives the server a name that is not its own (421, RFC 9110, 15.5.20), what a
    browser sends for a page of another site (403), and what does not present the token (401, RFC
    6750). `OPEN_PATHS` are open, since load balancers know a server by its address alone. The
    page at `DOCS_PATH` needs no token: it holds nothing of the model, and asks for one itself.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._names = own_names(config.host, config.hosts)
        self._token = None if config.token is None else config.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or have the application answer."""
        refusal = None
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, body, headers = refusal
            count = scope.get("state", {}).get(COUNT_ANSWER)
            if count is not None:
                count(status)
            await send_json(send, body, status, headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        fields = dict(scope["headers"])
        host = fields.get(b"host")
        # Only clients of HTTP/1.0 need not say it, and no browser is one.
        if self._names is not None and host is not None and _name(host) not in self._names:
            return 421, _MISDIRECTED, ()
        if (b"origin" in fields or b"sec-fetch-site" in fields) and _is_cross_site(scope, fields):
            return 403, _CROSS_SITE, ()
        path = scope["path"]
        if path == DOCS_PATH or path.startswith(DOCS_FOLDER):
            return None
        if self._token is not None and not self._admits(scope, fields):
            return 401, _UNAUTHORIZED, CHALLENGE
        return None

    def _admits(self, scope: Scope, fields: Mapping[bytes, bytes]) -> bool:
        several = sum(name == b"authorization" for name, _ in scope["headers"]) > 1
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        # Takes as long for a token that is nearly right as for any other.
        right = hmac.compare_digest(token.strip(), self._token or b"")
        return right and scheme.lower() == b"bearer" and not several


def own_names(host: str, more: Collection[str]) -> frozenset[bytes] | None:
    """Names that a request to the server on `host` may use; None if it may use any.

    One that listens on all addresses has every name that leads to it, unless `more` says which
    they are; it is the token that protects it.
    """
    if host in ("0.0.0.0", "::", "") and not more:  # noqa: S104 - nothing is bound to it
        return None
    return LOOPBACK | {name.lower().encode() for name in (host, *more)}


@lru_cache(256)
def _name(host: bytes) -> bytes:
    """The name in a header Host, without its port."""
    if host.startswith(b"["):
        name, bracket, _ = host[1:].partition(b"]")
        return name.lower() if bracket else host
    return host.partition(b":")[0].lower()


def _is_cross_site(scope: Scope, fields: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sends it for a page of another site; one that follows a link does not.

    See https://www.w3.org/TR/fetch-metadata/.
    """
    origin = fields.get(b"origin")
    if origin is not None:
        scheme, _, authority = origin.partition(b"://")
        own = fields.get(b"host", b"").lower()
        if scheme not in (b"http", b"https") or not own or authority.lower() != own:
            return True
    if fields.get(b"sec-fetch-site", b"none") in (b"same-origin", b"none"):
        return False
    return not (
        scope["method"] in ("GET", "HEAD")
        and fields.get(b"sec-fetch-mode") == b"navigate"
        and fields.get(b"sec-fetch-dest") == b"document"
    )


def require_token(host: str, token: str | None) -> None:
    """Make sure that a server on `host` cannot be used by everybody.

    Raises:
        UserError: `host` is not of this machine alone and there is no `token`, or `token` is none
            that protects.
    """
    if token is None:
        if not _is_loopback(host):
            raise UserError(
                f"The endpoint would be open to everybody who reaches {host}; set {TOKEN_VARIABLE} "
                f"to a secret of at least {MIN_TOKEN} characters, or listen on 127.0.0.1."
            )
    elif len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"The token in {TOKEN_VARIABLE} protects nothing; "
            f"set it to at least {MIN_TOKEN} ASCII characters without spaces."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
