"""Who may talk to the server: anybody on this machine, or whoever presents the token."""

import hmac
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from mlschool_dagster.errors import UserError
from mlschool_dagster.serving.process import TOKEN_VARIABLE
from mlschool_dagster.serving.responses import OPEN_PATH, error_body, send_json

MIN_TOKEN = 16
"""Fewest characters of a token."""
CHALLENGE = ((b"www-authenticate", b"Bearer"),)

_REFUSAL = error_body("Send the token of this endpoint as Authorization: Bearer <token>.")


class BearerToken:
    """An ASGI application that lets through to `app` what presents `token` (RFC 6750)."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or have the application answer."""
        if scope["type"] == "lifespan" or scope["path"] == OPEN_PATH or self._admits(scope):
            await self._app(scope, receive, send)
        else:
            await send_json(send, _REFUSAL, 401, CHALLENGE)

    def _admits(self, scope: Scope) -> bool:
        presented = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(presented) != 1:
            return False
        scheme, _, token = presented[0].partition(b" ")
        # Takes as long for a token that is nearly right as for any other.
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


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
