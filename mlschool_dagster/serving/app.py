"""The HTTP application: MLflow's scoring protocol and SageMaker's, and what it takes to watch it.

``POST /invocations`` answers ``{"predictions": [...], "model_version": "3"}`` after every captured
row is durable. ``GET /ping`` and ``/ready`` are 200 once a version serves, ``/live`` as soon as
the process answers. ``/version`` names the version, ``/health`` shows the worker's whole state,
``/metrics`` speaks to Prometheus, ``/docs`` and ``/openapi.json`` describe all of that.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlschool_dagster.capture.records import Role
from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.serving.auth import AuthMiddleware
from mlschool_dagster.serving.batching import Batcher
from mlschool_dagster.serving.buffered_store import BufferedStore, open_buffered_store
from mlschool_dagster.serving.docs_page import docs_routes
from mlschool_dagster.serving.invocations import Invocations, RejectionCounts
from mlschool_dagster.serving.logs import RequestLog
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.serving.model_router import ModelRouter, Routing, Version
from mlschool_dagster.serving.responses import (
    COUNT_ANSWER,
    LIVENESS_PATH,
    OPEN_PATH,
    READINESS_PATH,
    error_body,
)
from mlschool_dagster.serving.sagemaker import INVOCATIONS, SageMakerRoute
from mlschool_dagster.serving.server_config import ServerConfig
from mlschool_dagster.serving.worker_status import (
    METRICS_FOLDER,
    SHORTAGE,
    end_worker_if_failed,
    is_shortage,
)

BUFFER_FOLDER = "spill"
HOUSEKEEPING_SECONDS = 1.0

log = logging.getLogger(__name__)


def create_app(config: ServerConfig) -> ASGIApp:
    """The application that serves the deployments in ``config.home``."""
    return SageMakerRoute(AuthMiddleware(EndpointApp(config), config), config.name)


class EndpointApp:
    """One worker's application.

    Requests to predict go straight to `Invocations`; everything else is routed by Starlette.
    """

    _store: BufferedStore
    _batcher: Batcher
    _invocations: Invocations

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._router = ModelRouter(config.home)
        self._metrics = Metrics(config.name, config.home / METRICS_FOLDER)
        self._rejections = RejectionCounts(self._metrics)
        self._site = Starlette(
            routes=[
                # Requests to predict come here only with another method.
                Route(INVOCATIONS, self._ping, methods=["POST"]),
                Route(OPEN_PATH, self._ping),
                Route(READINESS_PATH, self._ping),
                Route(LIVENESS_PATH, self._live),
                Route("/version", self._version),
                Route("/health", self._health),
                Route("/metrics", self._exposition),
                Route("/openapi.json", self._openapi),
                *docs_routes(),
            ],
            exception_handlers={HTTPException: _http_error, 500: _own_error},
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live one lifespan."""
        if scope["type"] == "http" and scope["path"] == INVOCATIONS and scope["method"] == "POST":
            await self._invocations(scope, receive, send)
        else:
            await self._site(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        config = self._config
        try:
            self._store = open_buffered_store(
                config.store_uri, config.home / BUFFER_FOLDER, config.spill_bytes
            )
            self._batcher = Batcher(self._store, config.name, self._metrics)
        except Exception as error:
            if is_shortage(error):
                # Its successor may have more, whereas what else goes wrong here ends the server.
                log.exception("a worker cannot begin")
                os._exit(SHORTAGE)
            raise
        requests = RequestLog(config.access_log)
        self._invocations = Invocations(
            config.name,
            config.home,
            self._router,
            self._batcher,
            self._rejections,
            self._metrics,
            requests,
        )
        await self._router.refresh()
        tasks = [
            asyncio.create_task(self._router.follow()),
            asyncio.create_task(self._housekeeping()),
        ]
        for task in tasks:
            task.add_done_callback(end_worker_if_failed)
        try:
            yield {COUNT_ANSWER: self._metrics.answer}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._rejections.flush(self._store)
            await self._batcher.close()
            requests.close()
            self._metrics.close()
            log.info("worker stopped", extra={"captures": self._batcher.written})

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            await self._rejections.flush(self._store)
            self._metrics.buffered(self._store.buffered_bytes)
            self._report_versions()

    def _report_versions(self) -> None:
        for role in Role:
            version = self._routing().variant(role)
            if version is None:
                self._metrics.retired(role)
            else:
                self._metrics.serves(role, version.number, version.since)

    def _routing(self) -> Routing:
        return self._router.routing or Routing({})

    def _primary(self) -> Version:
        primary = self._routing().primary
        if primary is None:
            raise HTTPException(503, "No version serves yet")
        return primary

    async def _ping(self, request: Request) -> Response:
        self._primary()
        return _json({})

    async def _live(self, request: Request) -> Response:
        return _json({})

    async def _version(self, request: Request) -> Response:
        primary = self._primary()
        return _json(
            {
                "endpoint": self._config.name,
                "version": primary.number,
                "since": primary.since,
            }
        )

    async def _health(self, request: Request) -> Response:
        routing, failure = self._routing(), self._router.failure
        primary = routing.primary
        return _json(
            {
                "status": "starting" if primary is None else "ready",
                "endpoint": self._config.name,
                "version": None if primary is None else primary.number,
                "since": None if primary is None else primary.since,
                "versions": {role.value: version.number for role, version in routing.roles.items()},
                "pid": os.getpid(),
                "captures_written": self._batcher.written,
                "spilled_bytes": self._store.buffered_bytes,
                "deployment": self._router.deployment_id,
                "failure": None if failure is None else asdict(failure),
            }
        )

    async def _exposition(self, request: Request) -> Response:
        body, content_type = await asyncio.to_thread(self._metrics.exposition)
        return Response(body, headers={"content-type": content_type})

    async def _openapi(self, request: Request) -> Response:
        spec = self._primary().model.spec
        return Response(
            await asyncio.to_thread(_openapi, spec, self._config.name),
            media_type="application/json",
        )


@lru_cache(1)
def _openapi(spec: DataSpec, name: str) -> bytes:
    # pydantic, which no request needs, is imported and works when the document is first asked for.
    from mlschool_dagster.serving.openapi import openapi_document

    return orjson.dumps(openapi_document(spec, name))


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


async def _http_error(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 503:
        headers["Retry-After"] = "1"
    return Response(
        error_body(f"{error.detail}."),
        error.status_code,
        headers,
        media_type="application/json",
    )


async def _own_error(request: Request, error: Exception) -> Response:
    return Response(
        error_body("The server failed to answer; its log says why."),
        500,
        media_type="application/json",
    )
