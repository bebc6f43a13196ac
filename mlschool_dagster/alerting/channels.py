"""Channels: the log, and any service of Apprise by its URL.

https://appriseit.com/services/ lists the services, from e-mail over Slack to plain webhooks, with
the form of their URLs. Such a URL holds secrets: it is never logged, and a failure names its
channel by the service.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from mlschool_dagster.alerting.incidents import Notification, NotificationKind
from mlschool_dagster.credentials import Secret, address_secrets, hide
from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    import apprise

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CAUSE = re.compile(r"\[Errno [-\d]+\] [\w ]+|certificate verify failed|timed out|\((\d{3}), b")
"""The cause of a failure in a debug line of Apprise; the group is an SMTP status."""


class DeliveryError(Exception):
    """Notifications were not delivered; the message says why, without any secret."""


class Channel(Protocol):
    """A way to notify people."""

    @property
    def name(self) -> str:
        """The channel's name in the outbox and in the log; no secret."""

    def send(self, notifications: Sequence[Notification]) -> None:
        """Send all of `notifications` (at least one), in their order, in one message.

        Raises:
            DeliveryError: some of them may not have been delivered.
        """


class LogChannel:
    """Notifications as lines of `log`: errors and warnings, and resolved incidents as infos."""

    name = "log"

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def send(self, notifications: Sequence[Notification]) -> None:
        """See `Channel.send`."""
        for one in notifications:
            self._log.log(_level(one), f"{one.text} {one.link}".rstrip())


class AppriseChannel:
    """The service behind an Apprise `url`, called `name`.

    A URL with several recipients is one channel: when one of them fails, all are sent the message
    again.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = Secret(url)

    def send(self, notifications: Sequence[Notification]) -> None:
        """See `Channel.send`."""
        from apprise import Apprise, NotifyFormat

        service = Apprise(asset=_asset())
        service.add(_plugin(self._url.reveal()))
        result = service.notify(
            title=_title(notifications),
            body="\n\n".join(map(_paragraph, notifications)),
            notify_type=_type(notifications),
            body_format=NotifyFormat.TEXT,
            log_level=logging.DEBUG,
        )
        if not result:
            raise DeliveryError(self._reason([(e.level, e.message) for e in result.logs()]))

    def _reason(self, lines: Sequence[tuple[str, str]]) -> str:
        """Reason for which Apprise failed, from its log of the attempt."""
        warnings = [text for level, text in lines if level in ("WARNING", "ERROR")]
        causes = [match[1] or match[0] for _, text in lines for match in _CAUSE.finditer(text)]
        reason = " ".join(warnings or ["it gives no reason"]).rstrip(".")
        return hide(": ".join([reason, *causes[-1:]]), address_secrets(self._url.reveal()))


def apprise_channels(urls: Sequence[str]) -> list[AppriseChannel]:
    """A channel for each of `urls`, named by its service, and numbered from the second on.

    Raises:
        UserError: Apprise cannot use one of them, or it would send a password without encryption.
    """
    channels: list[AppriseChannel] = []
    counts: Counter[str] = Counter()
    for position, url in enumerate(urls, 1):
        service = _service(url, position)
        counts[service] += 1
        number = counts[service]
        channels.append(AppriseChannel(service if number == 1 else f"{service} {number}", url))
    return channels


@cache
def _service(url: str, position: int) -> str:
    """The name of the service behind `url`, the one at that `position` of the setting."""
    which = f"URL {position} of MLSCHOOL_ALERTS"
    try:
        plugin = _plugin(url)
    except DeliveryError as error:
        raise UserError(f"{which} cannot be used: {error}.") from None
    plain, encrypted = _first(plugin.protocol), _first(plugin.secure_protocol)
    is_sent_plainly = plain and encrypted and not plugin.secure
    if is_sent_plainly and plugin.password and plugin.host not in _LOOPBACK:
        raise UserError(
            f"{which} would send its password without encryption; begin it with {encrypted}:// "
            f"instead of {plain}://."
        )
    return str(plugin.service_name)


def _plugin(url: str) -> "apprise.NotifyBase":
    """The service behind `url`; a message that is too long for it becomes several.

    Raises:
        DeliveryError: Apprise cannot use the URL.
    """
    from apprise import Apprise, OverflowMode

    plugin = Apprise.instantiate(url, asset=_asset())
    if plugin is None:
        raise DeliveryError("no service of Apprise has such a URL (appriseit.com/services)")
    if "overflow=" not in url:
        plugin.overflow_mode = OverflowMode.SPLIT
    return plugin


def _first(protocols: str | Sequence[str] | None) -> str:
    return protocols if isinstance(protocols, str) else next(iter(protocols or ()), "")


@cache
def _asset() -> "apprise.AppriseAsset":
    """Apprise's configuration: in this thread, on memory alone, to no address but the given."""
    from apprise import AppriseAsset

    # Its debug lines name the causes of failures, and addresses: they are read here alone.
    log = logging.getLogger("apprise")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    return AppriseAsset(
        app_id="mlschool",
        app_desc="mlschool",
        async_mode=False,
        http_redirects=False,
        storage_mode="memory",
        pgp_autogen=False,
        pem_autogen=False,
        allow_templates=False,
        image_path_mask="",
        image_url_mask="",
        service_timeout=0,
    )


def _title(notifications: Sequence[Notification]) -> str:
    more = f" (and {len(notifications) - 1} more)" if len(notifications) > 1 else ""
    return f"[mlschool] {notifications[0].text}{more}"


def _paragraph(one: Notification) -> str:
    lines = (f"{one.at:%Y-%m-%d %H:%M:%S} UTC, {one.kind}", one.text, one.link)
    return "\n".join(line for line in lines if line)


def _type(notifications: Sequence[Notification]) -> str:
    """Apprise's type of the message: that of the gravest notification."""
    level = max(map(_level, notifications))
    return {logging.INFO: "success", logging.WARNING: "warning"}.get(level, "failure")


def _level(notification: Notification) -> int:
    if notification.kind is NotificationKind.RESOLVED:
        return logging.INFO
    return logging.ERROR if notification.severe else logging.WARNING
