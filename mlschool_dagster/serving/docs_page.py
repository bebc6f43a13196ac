"""The page that shows the OpenAPI document and lets a person try a request: Swagger UI.

The page and its files are served from this package and need no other site. They hold nothing of
the model, so they need no token: the page's script fetches the document, and asks for the token
where one is set. A Content-Security-Policy keeps every script but these, and all other sites, out.
"""

import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from mlschool_dagster.serving.responses import DOCS_FOLDER, DOCS_PATH, send_body

_STATIC = Path(__file__).with_name("static")
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {
    path.name.removesuffix(".gz"): path
    for path in (
        *(_STATIC / name for name in ("docs.html", "docs.css", "docs.js")),
        *(_STATIC / "swagger-ui").glob("*.gz"),
    )
}
_PAGE = "docs.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _File(NamedTuple):
    compressed: bytes
    headers: dict[str, str]


@cache
def _file(name: str) -> _File:
    path = _FILES[name]
    content = path.read_bytes()
    compressed = content if path.suffix == ".gz" else gzip.compress(content, mtime=0)
    # A name with a version in it stands for the same content for ever; others are asked for again.
    lasts = path.suffix == ".gz"
    return _File(
        compressed,
        {
            "Content-Type": f"{_MEDIA_TYPES[Path(name).suffix]}; charset=utf-8",
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "public, max-age=31536000, immutable" if lasts else "no-cache",
            "ETag": f'"{sha256(compressed).hexdigest()[:32]}"',
            "Vary": "Accept-Encoding",
        },
    )


class _Pieces(Response):
    """A response that is sent in pieces, as the client takes them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, bytes(self.body), self.status_code, self.raw_headers)


async def _serve(request: Request) -> Response:
    name = request.path_params.get("name", _PAGE)
    if name not in _FILES:
        raise HTTPException(404, "There is no such file")
    compressed, headers = _file(name)
    known = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return _Pieces(compressed, headers={**headers, "Content-Encoding": "gzip"})
    return _Pieces(gzip.decompress(compressed), headers=headers)


def docs_routes() -> list[BaseRoute]:
    """The routes of the page and of its files."""
    return [Route(DOCS_PATH, _serve), Route(f"{DOCS_FOLDER}{{name}}", _serve)]
