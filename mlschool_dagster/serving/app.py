"""The HTTP application: MLflow's scoring protocol, and what it takes to watch the server.

``POST /invocations`` answers ``{"predictions": [...], "model_version": "3"}`` after every row is
durable in the capture store. ``GET /ping`` is 200 once a version serves, ``/version`` names it, and
``/health`` tells the server's whole state.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlschool_dagster.capture.records import Capture, utc_now
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.serving.capturing import CaptureFailedError, CaptureWriter
from mlschool_dagster.serving.validation import InvalidRequestError, Row
from mlschool_dagster.serving.versions import Version, Versions

MAX_BODY = 6 * 1024 * 1024
LARGE_BODY = 64 * 1024
"""Bodies above this are worked on beside the event loop, one at a time, so that small requests
need not wait and memory stays bounded."""
BODY_SECONDS = 30.0
EVENT_ID_HEADERS = ("x-amzn-sagemaker-inference-id", "x-request-id")
"""Where a caller may name its request, the first that is present counts. Several rows get the name
with -0, -1, ... appended."""
MAX_EVENT_ID = 200

log = logging.getLogger(__name__)


def create_app(home: Path, store_uri: str, name: str) -> Starlette:
    """The application that serves the deployment in `home` as the endpoint `name`.

    It captures into the store at `store_uri`, which is opened when the application starts.
    """
    versions = Versions(home)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        writer = CaptureWriter(open_store(store_uri))
        app.state.writer = invocations.writer = writer
        await versions.refresh()
        following = asyncio.create_task(versions.follow())
        try:
            yield
        finally:
            following.cancel()
            await writer.close()
            log.info("server stopped", extra={"captures": writer.written})

    invocations = Invocations(name, versions)

    async def ping(request: Request) -> Response:
        return _json({}, 503 if versions.current is None else 200)

    async def version(request: Request) -> Response:
        current = versions.current
        if current is None:
            return _error(503, "No version serves yet.")
        return _json({"endpoint": name, "version": current.release.version, "since": current.since})

    async def health(request: Request) -> Response:
        current = versions.current
        return _json(
            {
                "status": "starting" if current is None else "ready",
                "endpoint": name,
                "version": None if current is None else current.release.version,
                "since": None if current is None else current.since,
                "pid": os.getpid(),
                "captures_written": app.state.writer.written,
                "deployment": versions.deployment_id,
                "failure": None if versions.failure is None else asdict(versions.failure),
            }
        )

    app = Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),
            Route("/ping", ping),
            Route("/version", version),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: _http_error, 500: _own_error},
        lifespan=lifespan,
    )
    return app


class Invocations:
    """The ASGI endpoint that predicts: validate, predict, capture, answer."""

    writer: CaptureWriter

    def __init__(self, name: str, versions: Versions) -> None:
        self._name = name
        self._versions = versions
        self._large = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await self._answer(Headers(scope=scope), receive)
        except InvalidRequestError as refusal:
            response = _error(refusal.status, refusal.message, refusal.faults)
            if refusal.status in (408, 413):
                response.headers["Connection"] = "close"
        await response(scope, receive, send)

    async def _answer(self, headers: Headers, receive: Receive) -> Response:
        version = self._versions.current
        if version is None:
            return _try_again("No version serves yet.")
        _require_json(headers)
        name = _event_name(headers)
        body = await _read_body(headers, receive)
        if len(body) <= LARGE_BODY:
            captures = self._predict(version, body, name)
        else:
            async with self._large:
                captures = await asyncio.to_thread(self._predict, version, body, name)
        try:
            refused = await self.writer.append(captures)
        except CaptureFailedError:
            return _try_again("The request could not be captured, so it is not answered.")
        if refused:
            return _error(
                409,
                "The event id already belongs to a request with other input; use a new one.",
            )
        return _json(
            {
                "predictions": [
                    {
                        "prediction": capture.prediction,
                        "confidence": capture.confidence,
                        "probabilities": capture.probabilities,
                        "event_id": capture.event_id,
                    }
                    for capture in captures
                ],
                "model_version": version.release.version,
            }
        )

    def _predict(self, version: Version, body: bytes, name: str | None) -> list[Capture]:
        rows = version.validator.rows(body)
        probabilities = version.model.probabilities(rows).tolist()
        classes = version.model.spec.target.classes
        now = utc_now()
        captures = []
        for event_id, row, shares in zip(_event_ids(name, rows), rows, probabilities, strict=True):
            confidence = max(shares)
            captures.append(
                Capture(
                    event_id=event_id,
                    captured_at=now,
                    endpoint=self._name,
                    model_version=version.release.version,
                    inputs=row,
                    prediction=classes[shares.index(confidence)],
                    confidence=confidence,
                    probabilities=dict(zip(classes, shares, strict=True)),
                )
            )
        return captures


def _require_json(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequestError(415, "Send the body as application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequestError(415, "Send the body without content encoding.")


def _event_name(headers: Headers) -> str | None:
    for header in EVENT_ID_HEADERS:
        name = headers.get(header)
        if name is not None:
            if not (0 < len(name) <= MAX_EVENT_ID and name.isascii() and name.isprintable()):
                raise InvalidRequestError(
                    400, f"The header {header} must hold 1 to {MAX_EVENT_ID} printable characters."
                )
            return name
    return None


def _event_ids(name: str | None, rows: Sequence[Row]) -> list[str]:
    if name is None:
        return [str(uuid4()) for _ in rows]
    return [name] if len(rows) == 1 else [f"{name}-{i}" for i in range(len(rows))]


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    # The header is only good for refusing early; what arrives is counted.
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise InvalidRequestError(400, "The request ended before its body did.")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > MAX_BODY:
                    raise _too_large()
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise InvalidRequestError(408, "The body did not arrive in time.") from None


def _too_large() -> InvalidRequestError:
    return InvalidRequestError(413, f"The body is larger than {MAX_BODY // 1024**2} MB; split it.")


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _error(status: int, message: str, faults: Sequence[Mapping[str, Any]] = ()) -> Response:
    return _json({"error": message, "faults": faults}, status)


def _try_again(message: str) -> Response:
    response = _error(503, message)
    response.headers["Retry-After"] = "1"
    return response


async def _http_error(request: Request, error: Any) -> Response:
    response = _error(error.status_code, f"{error.detail}.")
    response.headers.update(error.headers or {})
    return response


async def _own_error(request: Request, error: Exception) -> Response:
    return _error(500, "The server failed to answer; its log says why.")
