"""Notifications as plain e-mails."""

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import parse_qs, unquote, urlsplit

from mlschool_dagster.alerting.channels import ANSWER_SECONDS, DeliveryError
from mlschool_dagster.alerting.incidents import Notification
from mlschool_dagster.credentials import Secret

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in: with TLS from the start if ``implicit_tls``, else if offered.

    ``user`` is empty if nobody logs in; ``sender`` if the recipient is to stand as the sender too.
    """

    host: str
    port: int
    implicit_tls: bool
    user: str
    password: Secret
    sender: str

    @classmethod
    def from_uri(cls, uri: str) -> "MailServer":
        """The server of ``smtp://user:password@host:port?from=sender`` or ``smtps://...``.

        User and password are percent-encoded; all but the host may be left out.

        Raises:
            ValueError: it is no such address.
        """
        parts = urlsplit(uri)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("no address of a mail server")
        user = unquote(parts.username or "")
        (sender,) = parse_qs(parts.query).get("from", [user if "@" in user else ""])
        return cls(
            host=parts.hostname,
            port=parts.port or _PORTS[parts.scheme],
            implicit_tls=parts.scheme == "smtps",
            user=user,
            password=Secret(unquote(parts.password or "")),
            sender=sender,
        )


class EmailChannel:
    """Mail to `recipient`, handed in at `server`.

    Each recipient is a channel, so that one who is refused keeps no other waiting.
    """

    def __init__(self, server: MailServer, recipient: str) -> None:
        self._server = server
        self._recipient = recipient

    @property
    def name(self) -> str:
        """See `Channel.name`."""
        return f"e-mail to {self._recipient}"

    def send(self, notifications: Sequence[Notification]) -> None:
        """See `Channel.send`."""
        try:
            with self._connected() as connection:
                connection.send_message(self._message(notifications))
        except smtplib.SMTPRecipientsRefused as error:
            ((code, _),) = error.recipients.values()
            raise DeliveryError(f"the mail server refused the recipient with {code}") from None
        except smtplib.SMTPResponseException as error:
            raise DeliveryError(f"the mail server answered {error.smtp_code}") from None
        except (OSError, smtplib.SMTPException) as error:
            name = type(error).__name__
            raise DeliveryError(f"the mail server cannot be used ({name})") from None

    def _connected(self) -> smtplib.SMTP:
        server = self._server
        tls = ssl.create_default_context()
        if server.implicit_tls:
            connection: smtplib.SMTP = smtplib.SMTP_SSL(
                server.host, server.port, timeout=ANSWER_SECONDS, context=tls
            )
        else:
            connection = smtplib.SMTP(server.host, server.port, timeout=ANSWER_SECONDS)
        try:
            connection.ehlo_or_helo_if_needed()
            encrypted = server.implicit_tls
            if not encrypted and connection.has_extn("starttls"):
                connection.starttls(context=tls)
                encrypted = True
            if server.user:
                if not encrypted and server.host not in _LOOPBACK:
                    raise DeliveryError("the mail server offers no TLS, and is told no password")
                connection.login(server.user, server.password.reveal())
        except BaseException:
            connection.close()
            raise
        return connection

    def _message(self, notifications: Sequence[Notification]) -> EmailMessage:
        message = EmailMessage()
        more = f" (and {len(notifications) - 1} more)" if len(notifications) > 1 else ""
        message["Subject"] = f"[mlschool] {notifications[0].text}{more}"
        message["From"] = self._server.sender or self._recipient
        message["To"] = self._recipient
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain="mlschool.invalid")
        message.set_content("\n\n".join(map(_paragraph, notifications)))
        return message


def _paragraph(notification: Notification) -> str:
    lines = (
        f"{notification.at:%Y-%m-%d %H:%M:%S} UTC, {notification.kind}",
        notification.text,
        notification.link,
    )
    return "\n".join(line for line in lines if line)
