"""``POST /invocations``: the path of a request, from its first byte to its answer.

Bound, parse, validate, predict, capture, answer. A 200 is sent only after every captured row of the
request is durable.
"""

import asyncio
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from mlschool_dagster.capture.idempotency import row_ids
from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX, Role
from mlschool_dagster.capture.store import StoreUnavailableError
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.batching import (
    Batcher,
    CaptureFailedError,
    ConflictError,
    predict,
)
from mlschool_dagster.serving.buffered_store import BufferedStore
from mlschool_dagster.serving.logs import RequestLog
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.serving.model_router import ModelRouter, NoVersionError, Routing, Version
from mlschool_dagster.serving.prediction_request import PredictionRequest, new_event_ids
from mlschool_dagster.serving.probes import PROBE_HEADER, is_probe_key
from mlschool_dagster.serving.request_body import (
    FEW_ROWS,
    LARGE_BODY,
    MAX_BODY,
    MemoryBudget,
    TooBusyError,
    bytes_of_rows,
    read_body,
    too_large,
)
from mlschool_dagster.serving.responses import CLOSE, RETRY_LATER, Headers, error_body, send_json
from mlschool_dagster.serving.validation import Accepted, InvalidRequestError

EVENT_ID_HEADERS = (b"x-amzn-sagemaker-inference-id", b"x-request-id")
"""Headers in which a caller may name its request; the first present one counts (see `row_ids`)."""
VARIANT_HEADER = b"x-amzn-sagemaker-target-variant"
_PROBE_HEADER = PROBE_HEADER.lower().encode()
MAX_EVENT_ID = 200
MEDIA_TYPES = ("application/json", "text/csv")
_CHARSET = re.compile(r'(?:^|;)\s*charset\s*=\s*"?([^\s;"]*)', re.IGNORECASE)

LARGE_AT_ONCE = 2
LARGE_IN_ALL = 32
"""Large bodies that are worked on at the same time, and those that wait for it included; any other
one is answered 503, since it would wait too long."""

log = logging.getLogger(__name__)


UNAVAILABLE: Mapping[type[Exception], str] = {
    NoVersionError: "No version serves yet.",
    TooBusyError: "The server is busy with other large requests.",
    CaptureFailedError: "The request could not be captured, so it is not answered.",
}


class RejectionCounts:
    """Counts of refused requests by reason and hour, kept in memory until a flush to the store.

    A server that is killed loses the counts of the last second.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: defaultdict[Window, Counter[str]] = defaultdict(Counter)

    def count(self, reason: str) -> None:
        """Count one refused request under its first reason, so that counts add up to requests."""
        self._counts[Window.of(utc_now())][reason] += 1
        self._metrics.rejected(reason)

    async def flush(self, store: BufferedStore) -> None:
        """Add the counts so far to the store's; while it is unavailable they stay here."""
        for window in list(self._counts):
            counts = self._counts.pop(window)
            try:
                await asyncio.to_thread(store.count_refusals, window, counts)
            except StoreUnavailableError as error:
                self._counts[window].update(counts)
                log.warning("refusals wait for the store", extra={"reason": str(error)})


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its outcome, for metrics and log."""

    started: float
    status: int = 500
    event_id: str = ""
    version: str = ""
    role: str = ""
    rows: int = 0
    held: int = 0
    """Bytes of memory that count for it."""


class Invocations:
    """The ASGI application behind ``/invocations``."""

    def __init__(
        self,
        name: str,
        home: Path,
        router: ModelRouter,
        batcher: Batcher,
        rejections: RejectionCounts,
        metrics: Metrics,
        requests: RequestLog,
    ) -> None:
        self._name = name
        self._home = home
        self._router = router
        self._batcher = batcher
        self._rejections = rejections
        self._metrics = metrics
        self._requests = requests
        self._memory = MemoryBudget()
        # Large requests are parsed one by one, while the one before is captured.
        self._parsing = asyncio.Lock()
        self._working = asyncio.Semaphore(LARGE_AT_ONCE)
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(time.perf_counter())
        try:
            body, headers = await self._response(scope, receive, exchange)
            seconds = time.perf_counter() - exchange.started
            self._metrics.request(exchange.status, exchange.version, exchange.role, seconds)
            self._requests.answered(exchange, seconds)
            await send_json(send, body, exchange.status, headers)
        finally:
            if exchange.held:
                self._memory.hold(exchange, 0)

    async def _response(
        self, scope: Scope, receive: Receive, exchange: Exchange
    ) -> tuple[bytes, Headers]:
        try:
            body = await self._answer(scope, receive, exchange)
            exchange.status = 200
        except InvalidRequestError as refusal:
            self._reject(exchange, refusal.status, refusal.reasons[0])
            closing = refusal.status in (408, 413)
            return error_body(refusal.message, refusal.faults), CLOSE if closing else ()
        except ConflictError:
            self._reject(exchange, 409, "event id taken")
            return error_body(
                "The event id already belongs to a request with other rows; use a new one."
            ), ()
        except (NoVersionError, TooBusyError, CaptureFailedError) as error:
            exchange.status = 503
            return error_body(UNAVAILABLE[type(error)]), RETRY_LATER
        except Exception:
            log.exception("request failed", extra={"event_id": exchange.event_id})
            return error_body("The server failed to answer; its log says why."), ()
        return body, ()

    def _reject(self, exchange: Exchange, status: int, reason: str) -> None:
        exchange.status = status
        self._rejections.count(reason)
        self._requests.rejected(exchange, reason)

    async def _answer(self, scope: Scope, receive: Receive, exchange: Exchange) -> bytes:
        headers = dict(scope["headers"])
        name = _event_name(headers)
        if name is not None and name.startswith(SMOKE_TEST_PREFIX):
            self._require_probe(headers)
        exchange.event_id = name or ""
        media_type = _media_type(headers)
        partial = _is_partial(scope["query_string"])
        routing = self._router.routing
        if routing is None:
            raise NoVersionError
        key = name or new_event_ids(1)[0]
        choice = _choose(routing, headers.get(VARIANT_HEADER), name, key)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY:
            raise too_large()

        def prepare(body: bytes) -> PredictionRequest:
            accepted = choice[1].validator.accept(body, media_type, partial)
            return _prediction_request(routing, choice, accepted, name, key)

        body = await read_body(await receive(), receive, self._memory, exchange)
        if len(body) > LARGE_BODY:
            if self._large == LARGE_IN_ALL:
                raise TooBusyError
            self._large += 1
            try:
                async with self._working:
                    return await self._answer_large(body, prepare, exchange)
            finally:
                self._large -= 1
        request = prepare(body)
        self._hold_rows(request, exchange)
        await self._submit(request, exchange)
        return self._hold_answer(request.answer(), exchange)

    def _require_probe(self, headers: Mapping[bytes, bytes]) -> None:
        if not is_probe_key(self._home, headers.get(_PROBE_HEADER)):
            raise InvalidRequestError(
                400,
                f"Event ids that begin with {SMOKE_TEST_PREFIX} are kept for the tests of new "
                "versions; use another one.",
                reasons=["event id reserved"],
            )

    async def _answer_large(
        self, body: bytes, prepare: Callable[[bytes], PredictionRequest], exchange: Exchange
    ) -> bytes:
        async with self._parsing:
            request = await asyncio.to_thread(prepare, body)
            self._hold_rows(request, exchange)
            await asyncio.to_thread(predict, [request], self._name)
        await self._submit(request, exchange)
        return self._hold_answer(await asyncio.to_thread(request.answer), exchange)

    def _hold_rows(self, request: PredictionRequest, exchange: Exchange) -> None:
        if request.accepted.total > FEW_ROWS:
            spec = request.version.model.spec
            self._memory.hold(exchange, exchange.held + bytes_of_rows(request.accepted.total, spec))

    def _hold_answer(self, answer: bytes, exchange: Exchange) -> bytes:
        # Never more than rows and body held, which are gone now; and what is captured is answered.
        if exchange.held:
            self._memory.hold(exchange, min(exchange.held, len(answer)))
        return answer

    async def _submit(self, request: PredictionRequest, exchange: Exchange) -> None:
        exchange.event_id = request.event_ids[0]
        exchange.version = request.version.number
        exchange.role = request.role
        exchange.rows = len(request.event_ids)
        if request.accepted.reasons:
            self._rejections.count(request.accepted.reasons[0])
        await self._batcher.submit(request)
        self._metrics.predictions([*request.captures, *request.shadow_captures])


def _choose(
    routing: Routing, variant: bytes | None, name: str | None, key: str
) -> tuple[Role, Version]:
    if variant is None:
        return routing.choose(key)
    role = next((role for role in Role if role.value.encode() == variant), None)
    version = None if role is None else routing.variant(role)
    probes_only = role in (Role.SHADOW, Role.CANDIDATE)
    is_probe = name is not None and name.startswith(SMOKE_TEST_PREFIX)
    if role is None or version is None or (probes_only and not is_probe):
        raise InvalidRequestError(
            400, "The target variant does not take this request.", reasons=["target variant"]
        )
    return role, version


def _prediction_request(
    routing: Routing,
    choice: tuple[Role, Version],
    accepted: Accepted,
    name: str | None,
    key: str,
) -> PredictionRequest:
    role, version = choice
    if name is None:
        rows = len(accepted.rows)
        event_ids = [key] if rows == 1 else [key, *new_event_ids(rows - 1)]
    else:
        event_ids = row_ids(name, len(accepted.rows))
    is_probe = key.startswith(SMOKE_TEST_PREFIX)
    is_captured = is_probe or routing.sampled(key)
    return PredictionRequest(
        role=role,
        version=version,
        shadow=routing.shadow if is_captured and not is_probe else None,
        accepted=accepted,
        event_ids=event_ids,
        is_captured=is_captured,
        sampling_share=1.0 if is_probe else routing.sampling_share,
        is_named=name is not None,
    )


def _event_name(headers: Mapping[bytes, bytes]) -> str | None:
    for header in EVENT_ID_HEADERS:
        name = headers.get(header)
        if name is not None:
            text = name.decode("latin-1")
            if not (0 < len(text) <= MAX_EVENT_ID and text.isascii() and text.isprintable()):
                raise InvalidRequestError(
                    400,
                    f"The header {header.decode()} must hold 1 to {MAX_EVENT_ID} printable "
                    "characters.",
                    reasons=["event id unfit"],
                )
            return text
    return None


def _media_type(headers: Mapping[bytes, bytes]) -> str:
    declared = headers.get(b"content-type", b"").decode("latin-1")
    media_type, _, parameters = declared.partition(";")
    media_type = media_type.strip().lower()
    if media_type not in MEDIA_TYPES:
        raise InvalidRequestError(415, f"Send the body as {' or '.join(MEDIA_TYPES)}.")
    charset = _CHARSET.search(parameters)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequestError(415, "Send the body in UTF-8.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequestError(415, "Send the body without content encoding.")
    return media_type


def _is_partial(query: bytes) -> bool:
    if not query:
        return False
    choice = dict(parse_qsl(query.decode("latin-1"))).get("on_error", "refuse")
    if choice not in ("refuse", "partial"):
        raise InvalidRequestError(
            400, "The parameter on_error must be refuse or partial.", reasons=["on_error"]
        )
    return choice == "partial"
