"""Server of the report pages: ``python -m mlschool_dagster.local.report_server``.

It serves HTML files below one folder and nothing else: no listing, no hidden file, no symbolic
link. Pages hold programs and data of others, so that a Content-Security-Policy
(https://www.w3.org/TR/CSP3/) sandboxes each.
"""

import argparse
import asyncio
import operator
import os
import stat
from functools import reduce
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlschool_dagster.local.web_guard import App, Receive, Scope, Send, WebGuard
from mlschool_dagster.settings import Settings
from mlschool_dagster.storage import Location, is_remote, location

CONNECTION_SECONDS = 60.0
"""Longest connection: it serves one page."""
MAX_CONNECTIONS = 64
MAX_BYTES = 256 * 1024**2
SUFFIX = ".html"
POLICY = "; ".join(
    [
        "default-src 'none'",
        # Evidently and Plotly are inside the page, and compile functions from text.
        "script-src 'unsafe-inline' 'unsafe-eval'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "font-src data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        # Without an origin, a page reaches only itself.
        "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox allow-downloads",
    ]
)
_HOME = Path(__file__).with_name("static") / "reports.html"
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
    # One page a connection, so that its time bounds everything that a client may take.
    "connection": "close",
}


class ReportPages:
    """ASGI application that serves the HTML files below `root`."""

    def __init__(self, root: Location) -> None:
        self._root = root

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            return
        status, body = 405, b"Pages are only read.\n"
        if scope["method"] in ("GET", "HEAD"):
            page = await asyncio.to_thread(self._page, scope["path"])
            status, body = (404, b"There is no such page.\n") if page is None else (200, page)
        kind = "text/html" if status == 200 else "text/plain"
        headers = {
            **_HEADERS,
            "content-type": f"{kind}; charset=utf-8",
            "content-length": str(len(body)),
            **({"allow": "GET, HEAD"} if status == 405 else {}),
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})

    def _page(self, path: str) -> bytes | None:
        if path == "/":
            return _HOME.read_bytes()
        parts = path.removeprefix("/").split("/")
        if not path.endswith(SUFFIX) or any(part[:1] in ("", ".") for part in parts):
            return None
        try:
            if not is_remote(self._root.uri):
                return _read(Path(self._root.uri), parts)
            copy = reduce(operator.truediv, parts, self._root).local()
            return copy.read_bytes() if copy.stat().st_size <= MAX_BYTES else None
        except (OSError, ValueError):
            return None


def _read(folder: Path, parts: list[str]) -> bytes | None:
    """The regular file at `parts` below `folder`; None for others. Symbolic links are errors."""
    opened = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            opened.append(os.open(part, flags, dir_fd=opened[-1]))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        opened.append(os.open(parts[-1], flags, dir_fd=opened[-1]))
        status = os.fstat(opened[-1])
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        with os.fdopen(opened.pop(), "rb") as file:
            return file.read()
    finally:
        for descriptor in opened:
            os.close(descriptor)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 on a connection that ends in time, whatever its client does."""

    _end: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._end = self.loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end.cancel()
        super().connection_lost(exc)


def application(folder: str) -> App:
    """The pages below `folder`, a path or URI, behind the guard."""
    settings = Settings.from_environment()
    root = location(folder, settings.home / "cache" / "files")
    return WebGuard(ReportPages(root), settings.hosts)


def main(arguments: list[str] | None = None) -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="report_server", description=__doc__)
    parser.add_argument("--folder", required=True, help="a path or URI (s3://, abfs://)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    app: Any = application(options.folder)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
    )


if __name__ == "__main__":
    main()
