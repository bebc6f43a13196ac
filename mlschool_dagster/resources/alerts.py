"""Alerts: where they are told, and the book of what was told."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.alerting.channels import Channel
    from mlschool_dagster.alerting.outbox import AlertOutbox


class Alerts(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The channels on which people are told what is wrong: always the log, others if configured."""

    uri: str = setting("history")
    webhook: str = setting("alert_webhook")
    recipients: list[str] = setting("alert_emails", [])
    mail_server: str = setting("smtp")
    reminder_hours: int = setting("alert_reminder_hours")
    dagster_url: str = setting("dagster_url")

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
            UserError: the database cannot be used.
        """
        from mlschool_dagster.alerting.outbox import AlertOutbox

        outbox = AlertOutbox(self.uri, [channel.name for channel in channels])
        try:
            yield outbox
        finally:
            outbox.close()

    def run_link(self, run_id: str) -> str:
        """The address of a run in Dagster's UI, empty if that is not known."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}" if self.dagster_url else ""
