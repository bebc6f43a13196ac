"""Notifications in Slack's format, for the incoming webhook of Slack or of anything that takes it.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mlschool_dagster.alerting.channels import ANSWER_SECONDS, DeliveryError
from mlschool_dagster.alerting.incidents import Notification, NotificationKind
from mlschool_dagster.credentials import Secret

_SIGNS = {
    NotificationKind.RESOLVED: ":large_green_circle:",
    NotificationKind.EVENT: ":large_blue_circle:",
}
_SEVERE, _WARNING = ":red_circle:", ":large_yellow_circle:"


class WebhookChannel:
    """The webhook at `url`, an ``https://`` or ``http://`` address, which is a secret itself."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = Secret(url)

    def send(self, notifications: Sequence[Notification]) -> None:
        """See `Channel.send`."""
        # Not httpx, which logs the address of every request.
        request = Request(  # noqa: S310 - the settings let nothing but HTTP through
            self._url.reveal(),
            data=json.dumps(message(notifications)).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with build_opener(_NoRedirects).open(request, timeout=ANSWER_SECONDS):
                return
        except HTTPError as error:
            with error:
                wait = error.headers.get("Retry-After", "")
            raise DeliveryError(
                f"the server answered {error.code}",
                timedelta(seconds=int(wait)) if wait.isascii() and wait.isdigit() else None,
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            # What they say of themselves may hold the address.
            cause = error.reason if isinstance(error, URLError) else error
            name = type(cause).__name__
            raise DeliveryError(f"the server cannot be reached ({name})") from None


def message(notifications: Sequence[Notification]) -> dict[str, Any]:
    """`notifications` as the JSON document that Slack takes."""
    more = f" (and {len(notifications) - 1} more)" if len(notifications) > 1 else ""
    blocks = [
        {"type": "section", "text": {"type": "mrkdwn", "text": _line(notification)}}
        for notification in notifications
    ]
    return {"text": f"{_escaped(notifications[0].text)}{more}", "blocks": blocks}


def _line(notification: Notification) -> str:
    sign = _SIGNS.get(notification.kind, _SEVERE if notification.severe else _WARNING)
    link = f" <{_escaped(notification.link)}|Look>" if notification.link else ""
    return f"{sign} {_escaped(notification.text)}{link}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class _NoRedirects(HTTPRedirectHandler):
    """Whoever redirects is answered by an error, and learns nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None
