"""Alerts: the channels, and the outbox."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.alerting.channels import Channel
    from mlschool_dagster.alerting.outbox import AlertOutbox


class Alerts(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The alert channels, always the log, and the outbox that feeds them."""

    uri: str = setting("history")
    model: str = Field(
        default="", description="Model to which the database belongs; empty: whichever."
    )
    services: str = setting("alerts")
    reminder_hours: int = setting("alert_reminder_hours")
    dagster_url: str = setting("dagster_url")

    def channels(self, log: logging.Logger) -> "list[Channel]":
        """`log`, and every configured service.

        Raises:
            UserError: a service cannot be used.
        """
        from mlschool_dagster.alerting.channels import LogChannel, apprise_channels

        services = self.services.split()
        # Without a service, Apprise is not imported.
        return [LogChannel(log), *(apprise_channels(services) if services else ())]

    @contextmanager
    def outbox(self, channels: "list[Channel]") -> "Iterator[AlertOutbox]":
        """The outbox for `channels`, closed with the block.

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
