"""The platform's own format of captures, refusals and labels in files: one JSON object a line.

What a line is follows from its keys; others than these are ignored. Times are ISO 8601 with a zone.

- A capture: ``inputs`` (an object of numbers, texts, booleans and nulls), ``prediction``,
  ``captured_at``; ``event_id``, or ``inference_id`` with ``row`` (the event id is then
  ``<inference_id>-<row>``); ``probabilities`` (class to probability) or ``confidence`` (that of the
  prediction) or both. Optional are ``model_version`` (else it is looked up), ``endpoint``, ``role``
  (``primary``) and ``sampling_share`` (1).
- A label: ``label``, ``labelled_at``, ``event_id`` (or ``inference_id`` with ``row``); optional
  is ``source``.
- Refused requests: ``refused_at``, ``reason``; optional is ``requests`` (1), how many.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from mlschool_dagster.capture.records import Capture, Label, Role
from mlschool_dagster.capture.sources import (
    BadLineError,
    Record,
    Refusal,
    VersionLookup,
    row_event_id,
)

LONGEST_TEXT = 512
"""Bytes of a name or an id, so that an index of any database takes it."""
MOST_REQUESTS = 10**12

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_SCALARS = (str, float, int, bool, type(None))
_ROLES = {role.value: role for role in Role}


class JsonLines:
    """Reads a line in the platform's own format (see `sources.LineParser`).

    ``endpoint`` is that of captures that name none, ``version_of`` knows the version of captures
    that name none.
    """

    def __init__(self, endpoint: str, version_of: VersionLookup) -> None:
        self._endpoint = endpoint
        self._version_of = version_of

    def __call__(self, line: bytes, object_name: str) -> tuple[Record]:
        """See `sources.LineParser`."""
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadLineError(f"it is no JSON ({error.msg})") from None
        if not isinstance(document, dict):
            raise BadLineError("it is no JSON object")
        if "prediction" in document:
            return (self._capture(document, object_name),)
        if "label" in document:
            return (_label(document),)
        if "reason" in document:
            return (_refusal(document),)
        raise BadLineError("it has none of the keys prediction, label and reason")

    def _capture(self, document: dict[str, Any], object_name: str) -> Capture:
        captured_at = _time(document, "captured_at")
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            raise BadLineError("inputs is no object")
        for name, value in inputs.items():
            if not isinstance(value, _SCALARS):
                raise BadLineError(f"the input {name[:40]!a} is neither text nor number")
        prediction = _text(document, "prediction")
        probabilities = _probabilities(document)
        return Capture(
            event_id=_event_id(document),
            captured_at=captured_at,
            endpoint=_text(document, "endpoint", self._endpoint),
            model_version=self._version(document, object_name, captured_at),
            inputs=inputs,
            prediction=prediction,
            confidence=_share(document, "confidence", probabilities.get(prediction)),
            probabilities=probabilities,
            role=_role(document),
            sampling_share=_share(document, "sampling_share", 1.0, least=1e-9),
        )

    def _version(self, document: Mapping[str, Any], name: str, captured_at: datetime) -> str:
        version = document.get("model_version")
        if version is None:
            version = self._version_of(name, captured_at)
            if version is None:
                raise BadLineError("it has no model_version, and none is known for its time")
        elif isinstance(version, int) and not isinstance(version, bool):
            version = str(version)
        # It names a folder and an entry of the registry.
        if not (isinstance(version, str) and version.isascii() and version.isdecimal()):
            raise BadLineError("model_version is no number")
        return version


def _label(document: Mapping[str, Any]) -> Label:
    return Label(
        _event_id(document),
        _text(document, "label"),
        _time(document, "labelled_at"),
        _text(document, "source", "imported"),
    )


def _refusal(document: Mapping[str, Any]) -> Refusal:
    requests = document.get("requests", 1)
    if not isinstance(requests, int) or not 0 < requests <= MOST_REQUESTS:
        raise BadLineError("requests is no number of requests")
    return Refusal(_time(document, "refused_at"), _text(document, "reason"), int(requests))


def _event_id(document: Mapping[str, Any]) -> str:
    if "event_id" in document or "inference_id" not in document:
        return _text(document, "event_id")
    row = document.get("row", 0)
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise BadLineError("row is no number of a row")
    return row_event_id(_text(document, "inference_id"), row)


def _text(document: Mapping[str, Any], key: str, default: str | None = None) -> str:
    text = document.get(key, default)
    if not isinstance(text, str) or not text:
        raise BadLineError(f"{key} is missing" if text is None else f"{key} is no text")
    if len(text) * 4 > LONGEST_TEXT and len(text.encode()) > LONGEST_TEXT:
        raise BadLineError(f"{key} has more than {LONGEST_TEXT} bytes")
    if "\0" in text:
        raise BadLineError(f"{key} has a zero byte in it")
    return text


def _time(document: Mapping[str, Any], key: str) -> datetime:
    text = document.get(key)
    if not isinstance(text, str):
        raise BadLineError(f"{key} is missing" if text is None else f"{key} is no time")
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not UTC and time.tzinfo is not None:
            time = time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadLineError(f"{key} is no time, as 2026-11-20T23:14:06Z is one") from None
    if time.tzinfo is None:
        raise BadLineError(f"{key} has no zone; end it with Z if it is UTC")
    if time < _FIRST:
        raise BadLineError(f"{key} is before 1970")
    return time


def _probabilities(document: Mapping[str, Any]) -> dict[str, float]:
    probabilities = document.get("probabilities")
    if probabilities is None:
        return {}
    if not isinstance(probabilities, dict):
        raise BadLineError("probabilities is no object")
    for share in probabilities.values():
        if not isinstance(share, (float, int)) or not 0 <= share <= 1:
            raise BadLineError("probabilities holds what is no number from 0 to 1")
    return probabilities


def _share(
    document: Mapping[str, Any], key: str, default: float | None, least: float = 0.0
) -> float:
    share = document.get(key)
    if share is None:
        share = default
    if share is None:
        raise BadLineError(f"{key} is missing")
    if not isinstance(share, (float, int)) or isinstance(share, bool) or not least <= share <= 1:
        raise BadLineError(f"{key} is no number from 0 to 1")
    return float(share)


def _role(document: Mapping[str, Any]) -> Role:
    role = document.get("role")
    if role is None:
        return Role.PRIMARY
    if not isinstance(role, str) or role not in _ROLES:
        raise BadLineError(f"role is none of {', '.join(_ROLES)}")
    return _ROLES[role]
