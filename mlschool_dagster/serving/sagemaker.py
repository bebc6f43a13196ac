"""SageMaker's runtime API: its clients work with the endpoint's address as ``endpoint_url``.

``POST /endpoints/NAME/invocations`` answers as ``/invocations`` does. Errors say besides what AWS's
clients read: the header ``x-amzn-errortype`` names the exception that they raise, and
``message`` is what it shows. See the API's InvokeEndpoint:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html.
"""

from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlschool_dagster.serving.responses import error_body, send_json

INVOCATIONS = "/invocations"
_ENDPOINTS = "/endpoints/"
_ERROR_TYPES = {
    401: b"AccessDeniedException",
    403: b"AccessDeniedException",
    429: b"ThrottlingException",
    500: b"InternalFailure",
    503: b"ServiceUnavailable",
}


class SageMakerRoute:
    """An ASGI application that lets `app` answer SageMaker's path to the endpoint `name`, too."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer."""
        if scope["type"] != "http" or not scope["path"].startswith(_ENDPOINTS):
            await self._app(scope, receive, send)
            return
        name, slash, rest = scope["path"].removeprefix(_ENDPOINTS).partition("/")
        sending = _ErrorsForAws(send)
        if slash + rest != INVOCATIONS:
            await self._app(scope, receive, send)
        elif name == self._name:
            await self._app({**scope, "path": INVOCATIONS}, receive, sending)
        else:
            refusal = error_body(f"No such endpoint is served here; this is {self._name}.")
            await send_json(sending, refusal, 404)


class _ErrorsForAws:
    """Sends responses; those of errors, which are small, with the headers of AWS."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._start)

    async def _send_error(self, start: Message) -> None:
        document: dict[str, Any] = orjson.loads(self._body)
        body = orjson.dumps({"message": document["error"], **document})
        kind = _ERROR_TYPES.get(start["status"], b"ValidationError")
        others = [field for field in start["headers"] if field[0] != b"content-length"]
        length = (b"content-length", b"%d" % len(body))
        headers = [*others, length, (b"x-amzn-errortype", kind)]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
