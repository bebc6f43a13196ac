"""Secrets: a type that does not print itself, and a scrubber for all that leaves the process.

Belongs here: which settings hold secrets, and how a secret is taken out of text. Does not belong
here: the exits themselves (errors, logs, event log, notifications), which call `scrub`.

The scrubber is the second line: what may hold a secret is not handed to code that prints it where
that can be avoided. It knows the secrets of this process's environment, in the spellings in which
clients and drivers quote them, and the shapes in which any URI carries one.
"""

import base64
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from functools import lru_cache
from html import escape
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
URIS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLSCHOOL_CAPTURE_STORE",
    "MLSCHOOL_CAPTURE_SOURCE",
    "MLSCHOOL_LABEL_SOURCE",
    "MLSCHOOL_HISTORY",
    "MLSCHOOL_ENDPOINT_URL",
    "MLSCHOOL_DATA",
)
"""Variables whose value is a URI that may carry a password."""
ADDRESSES = ("MLSCHOOL_ALERTS",)
"""Variables whose value are addresses, with blanks between them, that are secrets themselves."""
_NEEDED_BY_PYTHON = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR"),
    *("TMPDIR", "TEMP", "TMP", "PYTHON*", "VIRTUAL_ENV", "LD_*", "DYLD_*", "MALLOC_*"),
    *("OMP_*", "OPENBLAS_*", "MKL_*", "COVERAGE_*", "SSL_CERT_*"),
)
"""Variables that any Python program may need to run, and that hold no secrets."""
_SECRET_NAME = re.compile(
    r"^(MLSCHOOL|MLFLOW|DAGSTER|AWS|AZURE|PG|POSTGRES)\w*"
    r"(PASSWORD|TOKEN|SECRET|ACCESS_KEY|CLIENT_KEY|API_KEY)$"
)
_PARAMETERS = (
    r"(?:\w*password|passwd|pwd|\w*token|\w*secret|(?:api|access|secret|account)_?key|sig"
    r"|signature|credential)"
)
"""Parameters of a URI's query that hold secrets."""
_SHORTEST = 4
"""Characters of a secret below which replacing it would only garble text."""
_URI = re.compile(
    # User and password end at the last @ before the path.
    r"(?<=://)(?!user:password@)[^\s/?#'\"<>@]*:[^\s/?#'\"<>]*(?=@)"
    rf"|(?<=[?&;])(?i:(?P<name>{_PARAMETERS})=)[^\s&#'\"<>;\\]+"
)


class Secret:
    """Text that is read by `reveal` only: printing, formatting, pickling and encoding hide it."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})" if self._text else "Secret('')"

    def __str__(self) -> str:
        return HIDDEN if self._text else ""

    def __format__(self, specification: str) -> str:
        return format(str(self), specification)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, Secret) else other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, _memo: object) -> "Secret":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def public_uri(uri: str) -> str:
    """`uri` as it may be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    # An @ in a path is what follows a password that was not percent-encoded.
    if "://" not in uri or (host and "@" in parts.path):
        return HIDDEN if "@" in uri or "?" in uri else uri
    return f"{parts.scheme}://{host}{parts.path}"


def address_secrets(address: str) -> Iterator[str]:
    """Secret parts of an `address`: the address itself, its path, password and tokens.

    Services put tokens anywhere: ``slack://token/token/token``, ``pover://user@token``.
    """
    place, _, query = address.partition("://")[2].partition("?")
    authority, _, path = place.partition("/")
    userinfo, _, host = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    values = (value for _, value in parse_qsl(query))
    parts = (user, *host.split(":"), *path.split("/"), *values)
    # With its slash: a path may be a common word.
    for secret in (address, f"/{path}", password, *filter(_is_token, parts)):
        yield from (secret, unquote(secret))


def hide(text: str, secrets: Iterable[str]) -> str:
    """`text` without `secrets`, nor what `scrub` finds."""
    spellings = {
        spelling for one in secrets if len(one) >= _SHORTEST for spelling in _spellings(one)
    }
    return _any_of(spellings).sub(HIDDEN, scrub(text)) if spellings else scrub(text)


def scrub(text: str) -> str:
    """`text` without the secrets of this process's environment and without any URI's password."""
    if "=" in text or "@" in text:
        text = _URI.sub(_hide, text)
    known = _pattern(_environment())
    return text if known is None else known.sub(HIDDEN, text)


def move_tracking_password(environment: MutableMapping[str, str] = os.environ) -> None:
    """Put user and password of MLflow's address into the variables that MLflow has for them.

    From there MLflow sends them as well, and no error, link or log of the address can show them.
    """
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")) or "@" not in urlsplit(uri).netloc:
        return
    parts = urlsplit(uri)
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    environment["MLFLOW_TRACKING_URI"] = parts._replace(netloc=host).geturl()
    environment.setdefault("MLFLOW_TRACKING_USERNAME", unquote(user))
    environment.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password))


def environment_of_child(
    *needed: str, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Environment of a child process: the variables that Python needs, and those matching `needed`.

    Names are matched as those of files are: ``environment_of_child("MLFLOW_*")``. So a
    compromised server holds no secrets but its own.
    """
    patterns = (*_NEEDED_BY_PYTHON, *needed)
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def scrub_logs_and_tracebacks() -> None:
    """Scrub the log records of this process, and the tracebacks that end it or one of its threads.

    A `UserError` that ends the process is printed as its message, without traceback. Calling it
    again changes nothing.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "scrubs", False):
        return

    def scrubbed(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            return record
        if (clean := scrub(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            if (clean := scrub(text)) != text:
                record.exc_info, record.exc_text = None, clean
        return record

    scrubbed.scrubs = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(scrubbed)
    sys.excepthook = _print_scrubbed
    # Whoever collects the errors of threads already, as pytest does, goes on.
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_scrubbed_of_thread


def _print_scrubbed(
    _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    # A `UserError`: the module of errors imports this one.
    mistake = getattr(error, "needs_no_traceback", False)
    text = f"{error}\n" if mistake else "".join(traceback.format_exception(error))
    sys.stderr.write(scrub(text))


def _print_scrubbed_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        text = "".join(traceback.format_exception(ended.exc_value))
        name = ended.thread.name if ended.thread else ""
        sys.stderr.write(scrub(f"Exception in thread {name}:\n{text}"))


def _hide(match: re.Match[str]) -> str:
    return f"{match['name']}={HIDDEN}" if match["name"] else HIDDEN


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, value)
        for name, value in os.environ.items()
        if value and (name in URIS or name in ADDRESSES or _SECRET_NAME.match(name))
    )


@lru_cache(maxsize=16)
def _pattern(environment: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Pattern of the secrets in `environment`, the longest spelling first; None without any."""
    spellings: set[str] = set()
    for secret, user in _secrets(dict(environment)):
        if len(secret) >= _SHORTEST:
            spellings.update(_spellings(secret))
            spellings.update(_base64(f"{user}:{secret}", 1) if user else ())
    return _any_of(spellings) if spellings else None


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Pattern that matches any of `spellings`, the longest first."""
    return re.compile("|".join(map(_bounded, sorted(spellings, key=len, reverse=True))))


def _is_token(part: str) -> bool:
    """Whether `part` of an address looks random, unlike the name of a host or recipient."""
    is_mixed = any(map(str.isdigit, part)) and any(map(str.isalpha, part))
    is_name = "." in part or "@" in unquote(part)
    return not is_name and (len(part) >= 20 or (len(part) >= 8 and is_mixed))


def _secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each secret with its user, empty if it has none."""
    users = {"MLFLOW_TRACKING_PASSWORD": environment.get("MLFLOW_TRACKING_USERNAME", "")}
    for name, value in environment.items():
        if name in ADDRESSES:
            for address in value.split():
                yield from ((secret, "") for secret in address_secrets(address))
            continue
        if name not in URIS:
            yield value, users.get(name, "")
            continue
        try:
            parts = urlsplit(value)
        except ValueError:
            yield value, ""
            continue
        # The second holds of a password whose / or ? is not percent-encoded.
        for place in (parts.netloc, value.partition("://")[2]):
            user, _, password = place.rpartition("@")[0].partition(":")
            yield from ((password, user), (unquote(password), unquote(user)))
        for key, secret in parse_qsl(parts.query):
            if re.fullmatch(_PARAMETERS, key, re.IGNORECASE):
                yield secret, ""


def _spellings(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret, safe="")
    yield quote(secret)
    yield quote_plus(secret)
    yield re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), quote(secret, safe=""))
    yield quote(quote(secret, safe=""), safe="")
    yield repr(secret)[1:-1]
    yield escape(secret)
    for ascii_only in (True, False):
        yield json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
    yield from _base64(secret)


def _base64(text: str, offsets: int = 3) -> Iterator[str]:
    """Base64 encodings of `text` at any offset of a longer text, without the edges."""
    data = text.encode()
    for offset in range(offsets):
        encoded = base64.b64encode(b"\0" * offset + data).decode("ascii").rstrip("=")
        # Characters at the edges hold bits of the neighbouring text.
        first = (offset * 8 + 5) // 6
        core = encoded[first : (offset + len(data)) * 8 // 6]
        if len(core) >= 2 * _SHORTEST:
            yield core
            yield core.replace("+", "-").replace("/", "_")


def _bounded(secret: str) -> str:
    """`secret` as an expression; a short one is no part of a longer word."""
    if len(secret) >= 2 * _SHORTEST:
        return re.escape(secret)
    return rf"(?<![A-Za-z0-9_]){re.escape(secret)}(?![A-Za-z0-9_])"
