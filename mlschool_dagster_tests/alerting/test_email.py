"""E-mail: with and without TLS and login, and what becomes of servers that refuse."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from mlschool_dagster.alerting.channels import DeliveryError
from mlschool_dagster.alerting.email import EmailChannel, MailServer
from mlschool_dagster.credentials import Secret
from mlschool_dagster_tests.alerting.samples import notification
from mlschool_dagster_tests.serving.server import free_port

USER, PASSWORD = "user@example.org", "p@ss/word"
LOGIN = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
RECIPIENT = "team@example.org"


class Mailbox(Message):
    """What the server took, and over which kind of connection."""

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
    told = (login.login.decode(), login.password.decode())
    return AuthResult(success=told == (USER, PASSWORD), handled=False)


@contextmanager
def mail_server(hostname: str = "127.0.0.1", **options: Any) -> Iterator[tuple[Mailbox, int]]:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname=hostname, port=free_port(), **options)
    controller.start()
    try:
        yield mailbox, controller.port
    finally:
        controller.stop()


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def channel(uri: str, recipient: str = RECIPIENT) -> EmailChannel:
    return EmailChannel(MailServer.from_uri(uri), recipient)


def test_all_notices_are_one_plain_message() -> None:
    with mail_server() as (mailbox, port):
        channel(f"smtp://127.0.0.1:{port}").send(
            [
                notification("Größe fehlt: <b>", link="http://127.0.0.1:3000/runs/1"),
                notification("And more."),
            ]
        )
    (message,) = mailbox.messages
    subject = str(make_header(decode_header(message["Subject"])))
    assert subject == "[mlschool] Größe fehlt: <b> (and 1 more)"
    assert message["To"] == message["From"] == RECIPIENT
    assert message.get_content_type() == "text/plain"
    body = message.get_payload(decode=True).decode()
    assert body.replace("\r\n", "\n") == (
        "2026-11-21 08:00:00 UTC, firing\nGröße fehlt: <b>\nhttp://127.0.0.1:3000/runs/1\n\n"
        "2026-11-21 08:00:00 UTC, firing\nAnd more.\n"
    )


# The server does not count TLS from the start as TLS.
@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_login_is_told_over_tls(
    scheme: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = {"smtp": "tls_context", "smtps": "ssl_context"}[scheme]
    options: dict[str, Any] = {
        context: tls(certificate),
        "authenticator": authenticate,
        "auth_required": True,
    }
    with mail_server(**options, auth_require_tls=scheme == "smtp") as (mailbox, port):
        channel(f"{scheme}://{LOGIN}@127.0.0.1:{port}").send([notification()])
        with pytest.raises(DeliveryError, match="answered 535") as failure:
            channel(f"{scheme}://{USER.replace('@', '%40')}:wrong@127.0.0.1:{port}").send(
                [notification()]
            )
    assert mailbox.messages[0]["From"] == USER
    assert "wrong" not in str(failure.value)
    if scheme == "smtp":
        assert mailbox.encrypted == [True]


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with (
        mail_server(tls_context=tls(certificate)) as (mailbox, port),
        pytest.raises(DeliveryError, match="SSLCertVerificationError"),
    ):
        channel(f"smtp://127.0.0.1:{port}").send([notification()])
    assert mailbox.messages == []


def test_no_password_is_told_in_the_clear_beyond_loopback() -> None:
    with (
        mail_server("127.0.0.2", authenticator=authenticate, auth_require_tls=False) as (_, port),
        pytest.raises(DeliveryError, match="offers no TLS"),
    ):
        channel(f"smtp://{LOGIN}@127.0.0.2:{port}").send([notification()])


def test_a_recipient_who_is_refused_and_a_server_that_is_not_there_are_told() -> None:
    with (
        mail_server() as (_, port),
        pytest.raises(DeliveryError, match="refused the recipient with 550"),
    ):
        channel(f"smtp://127.0.0.1:{port}", "nobody@example.org").send([notification()])
    with pytest.raises(DeliveryError, match="ConnectionRefusedError"):
        channel(f"smtp://127.0.0.1:{port}").send([notification()])


def test_the_address_of_a_server_says_all_there_is_to_know() -> None:
    server = MailServer.from_uri(f"smtps://key:{quote(PASSWORD, safe='')}@host?from=a@example.org")
    assert server == MailServer("host", 465, True, "key", Secret(PASSWORD), "a@example.org")
    assert PASSWORD not in repr(server)
    assert MailServer.from_uri("smtp://host") == MailServer("host", 587, False, "", Secret(), "")
