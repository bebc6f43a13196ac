"""Channels by Apprise against real servers: what they are sent, and how failures are named."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.header import decode_header, make_header
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from mlschool_dagster.alerting.channels import AppriseChannel, DeliveryError, apprise_channels
from mlschool_dagster.alerting.incidents import TEXT_LENGTH, NotificationKind
from mlschool_dagster.alerting.outbox import MESSAGE_NOTIFICATIONS
from mlschool_dagster.errors import UserError
from mlschool_dagster_tests.alerting.samples import notification
from mlschool_dagster_tests.alerting.servers import SECRET, Webhook, webhook
from mlschool_dagster_tests.serving.server import free_port

USER, PASSWORD = "user", "p@ss/word"
LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"
ADDRESSES = "from=alerts@example.org&to=team@example.org"


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as server:
        yield server


def channel(url: str) -> AppriseChannel:
    (only,) = apprise_channels([url])
    return only


def failure(url: str) -> str:
    """Why the service behind `url` could not be notified."""
    with pytest.raises(DeliveryError) as error:
        channel(url).send([notification()])
    return str(error.value)


def test_all_notifications_are_one_message(server: Webhook) -> None:
    well = notification("All is well.", NotificationKind.RESOLVED)
    hostile = notification("<!channel> a & b > c", link="http://127.0.0.1:3000/runs/1?a=1&b=2")
    channel(server.url).send([hostile, well])
    (message,) = server.bodies
    assert message["title"] == "[mlschool] <!channel> a & b > c (and 1 more)"
    assert (message["type"], message["attachments"]) == ("failure", [])
    assert message["message"] == (
        "2026-11-21 08:00:00 UTC, firing\n<!channel> a & b > c\n"
        "http://127.0.0.1:3000/runs/1?a=1&b=2\n\n"
        "2026-11-21 08:00:00 UTC, resolved\nAll is well."
    )
    channel(server.url).send([well])
    assert server.bodies[1]["type"] == "success"


def test_the_largest_message_arrives_as_a_whole(server: Webhook) -> None:
    many = [notification("ß" * TEXT_LENGTH, link="http://host/" + "x" * 200)]
    channel(server.url).send(many * MESSAGE_NOTIFICATIONS)
    (message,) = server.bodies
    assert message["message"].count("ß" * TEXT_LENGTH) == MESSAGE_NOTIFICATIONS


@pytest.mark.parametrize(
    ("status", "headers"),
    [(404, {}), (500, {}), (429, {}), (302, {"Location": "http://127.0.0.1:1/elsewhere"})],
)
def test_a_refusal_is_named_without_the_secret(
    server: Webhook, status: int, headers: dict[str, str]
) -> None:
    server.status, server.headers = status, headers
    reason = failure(server.url)
    assert f"error={status}" in reason
    assert SECRET not in reason


@pytest.mark.parametrize(
    "url", [f"json://127.0.0.1:1/{SECRET}", f"json://user:{SECRET}@localhost:1/a/b"]
)
def test_a_server_that_is_not_there_is_named_without_the_secret(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    with caplog.at_level(logging.DEBUG):
        reason = failure(url)
    logging.getLogger().removeHandler(handler)
    assert "Connection refused" in reason
    assert SECRET not in reason + log.getvalue()


def test_a_server_that_hangs_is_a_failure(server: Webhook) -> None:
    server.hangs = True
    assert "timed out" in failure(f"{server.url}?rto=0.2")


def test_channels_are_named_by_their_service_and_numbered() -> None:
    urls = [
        "json://127.0.0.1/a",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        "json://127.0.0.1/b",
        f"mailtos://smtp.example.org?{ADDRESSES}",
    ]
    names = [channel.name for channel in apprise_channels(urls)]
    assert names == ["JSON", "Slack", "JSON 2", "E-Mail"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"nothing://{SECRET}", "no service of Apprise has such a URL"),
        (f"slack://{SECRET}", "no service of Apprise has such a URL"),
        (f"mailto://user:{SECRET}@smtp.example.org?{ADDRESSES}", "begin it with mailtos://"),
        (f"json://user:{SECRET}@example.org", "begin it with jsons:// instead of json://"),
    ],
)
def test_a_url_that_cannot_be_used_is_named_by_its_place(url: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^URL 2 of MLSCHOOL_ALERTS .*{message}") as error:
        apprise_channels(["json://127.0.0.1/a", url])
    assert SECRET not in str(error.value)


class Mailbox(Message):
    """The messages that the server took, and whether each connection was encrypted."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []
        self.encrypted: list[bool] = []

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, _: list[str]
    ) -> str:
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        self.encrypted.append(session.ssl is not None)
        return "250 OK"

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)


def authenticate(*arguments: Any) -> AuthResult:
    login = arguments[-1]
    assert isinstance(login, LoginPassword)
    given = (login.login.decode(), login.password.decode())
    return AuthResult(success=given == (USER, PASSWORD), handled=False)


@contextmanager
def mail_server(**options: Any) -> Iterator[tuple[Mailbox, int]]:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    try:
        yield mailbox, controller.port
    finally:
        controller.stop()


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_email_is_plain_text() -> None:
    with mail_server() as (mailbox, port):
        channel(f"mailto://127.0.0.1:{port}?{ADDRESSES}&format=text").send(
            [
                notification("Größe fehlt: <b>", link="http://127.0.0.1:3000/runs/1"),
                notification("And more."),
            ]
        )
    (message,) = mailbox.messages
    subject = str(make_header(decode_header(message["Subject"])))
    assert subject == "[mlschool] Größe fehlt: <b> (and 1 more)"
    assert "team@example.org" in message["To"]
    assert "alerts@example.org" in message["From"]
    assert message.get_content_type() == "text/plain"
    body = message.get_payload(decode=True).decode()
    assert "Größe fehlt: <b>" in body


# The server does not count TLS from the start as TLS.
@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("mode", ["starttls", "ssl"])
def test_a_login_goes_over_tls(
    mode: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    options: dict[str, Any] = {
        {"starttls": "tls_context", "ssl": "ssl_context"}[mode]: tls(certificate),
        "authenticator": authenticate,
        "auth_required": True,
    }
    with mail_server(**options, auth_require_tls=mode == "starttls") as (mailbox, port):
        end = f"@127.0.0.1:{port}?mode={mode}&{ADDRESSES}"
        channel(f"mailtos://{LOGIN}{end}").send([notification()])
        reason = failure(f"mailtos://{USER}:wrong-{SECRET}{end}")
    assert "535" in reason
    assert SECRET not in reason
    assert len(mailbox.messages) == 1
    if mode == "starttls":
        assert mailbox.encrypted == [True]


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with mail_server(tls_context=tls(certificate)) as (mailbox, port):
        reason = failure(f"mailtos://127.0.0.1:{port}?{ADDRESSES}")
    assert "certificate verify failed" in reason
    assert mailbox.messages == []


def test_a_recipient_who_is_refused_is_a_failure() -> None:
    with mail_server() as (_, port):
        url = f"mailto://127.0.0.1:{port}?from=alerts@example.org&to=nobody@example.org"
        assert "failed" in failure(url)
        reason = failure(f"mailto://127.0.0.1:{free_port()}?{ADDRESSES}")
    assert "Connection refused" in reason
