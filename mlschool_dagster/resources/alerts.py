"""Alerts: where they are told, and the book of what was told."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from mlschool_dagster.alerting.channels import Channel
    from mlschool_dagster.alerting.outbox import AlertOutbox


class Alerts(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The channels on which people are told what is wrong: always the log, others if configured."""

    uri: str = Field(
        description="Database that keeps what was told: sqlite:///path or "
        "postgresql://user:password@host/db."
    )
    model: str = Field(
        default="", description="Model to which the database belongs; empty: whichever."
    )
    webhook: str = Field(
        default="", description="Address that takes Slack's format; empty: there is none."
    )
    recipients: list[str] = Field(
        default=[], description="E-mail addresses; each is told by a message of its own."
    )
    mail_server: str = Field(
        default="",
        description="Where e-mail is handed in: smtp://user:password@host:587?from=address, or "
        "smtps:// for TLS from the start.",
    )
    reminder_hours: int = Field(
        default=24,
        ge=1,
        description="How long after it was told a trouble that goes on is told again; each later "
        "reminder waits twice as long.",
    )
    dagster_url: str = Field(
        default="", description="Address of Dagster's UI, for links to runs; empty: no links."
    )

    def channels(self, log: logging.Logger) -> "list[Channel]":
        """Every configured channel, and `log`."""
        from mlschool_dagster.alerting.channels import LogChannel
        from mlschool_dagster.alerting.email import EmailChannel, MailServer
        from mlschool_dagster.alerting.webhook import WebhookChannel

        channels: list[Channel] = [LogChannel(log)]
        if self.webhook:
            channels.append(WebhookChannel(self.webhook))
        if self.recipients:
            server = MailServer.from_uri(self.mail_server)
            channels.extend(EmailChannel(server, recipient) for recipient in self.recipients)
        return channels

    @contextmanager
    def outbox(self, channels: "list[Channel]") -> "Iterator[AlertOutbox]":
        """The book of what `channels` are told, closed with the block.

        Raises:
            UserError: the database cannot be used, or belongs to another model.
        """
        from mlschool_dagster.alerting.outbox import AlertOutbox
        from mlschool_dagster.database import claim

        if self.model:
            claim(self.uri, self.model)
        outbox = AlertOutbox(self.uri, [channel.name for channel in channels])
        try:
            yield outbox
        finally:
            outbox.close()

    def run_link(self, run_id: str) -> str:
        """The address of a run in Dagster's UI, empty if that is not known."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}" if self.dagster_url else ""
