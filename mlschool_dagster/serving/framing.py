"""The head of a request has one reading, or is refused.

Request smuggling needs two servers that disagree about where a request ends, or about what it asks
of whom. What RFC 9112 leaves open is therefore no request here.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus

import httptools

SINGLE_FIELDS = (
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"content-encoding",
    b"authorization",
    b"expect",
    b"origin",
    b"x-amzn-sagemaker-inference-id",
    b"x-amzn-sagemaker-target-variant",
    b"x-request-id",
)
"""Header fields that have a meaning here, which a second field of the name would make ambiguous."""
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=-]*(:\d*)?|\[[0-9A-Fa-f:.]+\](:\d*)?")


class RefusedRequestError(Exception):
    """A request that is answered with `status` and `message` here, and ends its connection."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def refused(status: HTTPStatus, message: str | None = None) -> RefusedRequestError:
    """The refusal with `status`, and its name if there is no more to say."""
    return RefusedRequestError(status, message or status.phrase)


def _bad(message: str) -> RefusedRequestError:
    return RefusedRequestError(HTTPStatus.BAD_REQUEST, message)


def require_single(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse `headers` in which one of `SINGLE_FIELDS` occurs twice.

    Raises:
        RefusedRequestError: one does (400).
    """
    names = [name for name, _ in headers]
    for field in SINGLE_FIELDS:
        if names.count(field) > 1:
            raise _bad(f"The request has several header fields {field.decode()}; send one")


def require_clear_framing(version: str, method: str, fields: Mapping[bytes, bytes]) -> None:
    """Refuse a head after which two servers could disagree about where the request ends.

    Raises:
        RefusedRequestError: its body has no clear length (400, 501), its version (505), method
            (501) or expectation (417) is none that is known here, or it names no host (400).
    """
    if version not in ("1.1", "1.0"):
        raise refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Send the request as HTTP/1.1")
    if method == "CONNECT":
        raise refused(HTTPStatus.NOT_IMPLEMENTED, "The server is no proxy")
    encoding = fields.get(b"transfer-encoding")
    if encoding is not None:
        if version == "1.0" or b"content-length" in fields:
            raise _bad("The length of the body is ambiguous; send Content-Length alone")
        if encoding.lower() != b"chunked":
            raise refused(
                HTTPStatus.NOT_IMPLEMENTED, "The only transfer encoding known here is chunked"
            )
    if b"host" not in fields and version == "1.1":
        raise _bad("The request names no Host")
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise refused(HTTPStatus.EXPECTATION_FAILED, "The only expectation known is 100-continue")


@lru_cache(64)
def target_of(url: bytes, host: bytes | None) -> tuple[bytes, bytes]:
    """Path and query of `url`, which may name the server, but as the field Host does.

    Raises:
        RefusedRequestError: it is no path of the server that `host` names (400).
    """
    if host is not None and not _AUTHORITY.fullmatch(host):
        raise _bad("The header field Host is no host name")
    parsed = httptools.parse_url(url)
    if not url.startswith(b"/"):
        # The target's host would count instead of the field's (RFC 9112, 3.2.2).
        authority = url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
        if parsed.schema not in (b"http", b"https") or authority.lower() != (host or b"").lower():
            raise _bad("The request's target is no path of this server")
    if b"#" in url:
        raise _bad("The request's target has a fragment")
    return parsed.path or b"/", parsed.query or b""
