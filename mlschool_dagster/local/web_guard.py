"""Guard for the pages that the platform serves: a browser is not to act for another site.

A server on loopback is reachable by every page that its user's browser shows. So each request must
name the server (against DNS rebinding), and must not come from another site (against cross-site
request forgery): https://owasp.org/www-community/attacks/csrf, https://www.w3.org/TR/fetch-metadata.

Belongs here: the rule, as ASGI middleware. Does not belong here: who may log in.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NOT_OURS = "This server is not known by that name; open it by the address that it was started with, or add the name to MLSCHOOL_HOSTS."  # noqa: E501
_CROSS_SITE = "Another site may not make requests here; open the page itself."
_NO_QUERY = "GraphQL takes queries by POST, as application/json."


class WebGuard:
    """ASGI middleware that lets only requests for this server, from its own pages, through to `app`.

    ``names`` are host names, besides those of loopback, by which the server is known. A link on
    another site may open a page here. Where ``graphql`` is set, paths that end in ``/graphql`` take
    operations by POST as JSON only: a GET can be sent by any image tag.
    """  # noqa: E501

    def __init__(self, app: App, names: Iterable[str] = (), *, graphql: bool = False) -> None:
        self._app = app
        self._names = LOOPBACK | {name.lower() for name in names}
        self._graphql = graphql

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before it is accepted, a close is an HTTP answer of 403.
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            status, text = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": f"{text}\n".encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if the request is refused."""
        fields: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            fields.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = fields.get("host", [])
        if len(hosts) != 1 or _name(hosts[0]) not in self._names:
            return 421, _NOT_OURS
        if any(not _is_same(origin, hosts[0]) for origin in fields.get("origin", [])):
            return 403, _CROSS_SITE
        sites = set(fields.get("sec-fetch-site", [])) - {"same-origin", "none"}
        operation = self._graphql and scope["path"].rstrip("/").endswith("/graphql")
        if sites and (operation or not _is_navigation(scope, fields)):
            return 403, _CROSS_SITE
        if operation and scope["type"] == "http" and not _is_operation(scope, fields):
            return 405, _NO_QUERY
        return None


def _name(host: str) -> str | None:
    """The host name in a field Host or Origin, without its port; None if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    plain = parts.netloc == host and not parts.username
    return parts.hostname if plain else None


def _is_same(origin: str, host: str) -> bool:
    scheme, separator, rest = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and rest.lower() == host.lower()


def _is_navigation(scope: Scope, fields: dict[str, list[str]]) -> bool:
    """Whether somebody follows a link, which replaces the page that has it."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and fields.get("sec-fetch-mode") == ["navigate"]
        and fields.get("sec-fetch-dest") == ["document"]
    )


def _is_operation(scope: Scope, fields: dict[str, list[str]]) -> bool:
    """Whether no form and no tag of another page could have sent this to GraphQL."""
    if scope["method"] == "POST":
        kinds = fields.get("content-type", [])
        return len(kinds) == 1 and kinds[0].partition(";")[0].strip() == "application/json"
    # Its playground: the page alone, without a query.
    page = "text/html" in "".join(fields.get("accept", []))
    return scope["method"] == "GET" and page and not scope["query_string"]
