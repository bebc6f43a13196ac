"""Alerts: the channels, and the outbox."""

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
    """The alert channels, always the log, and the outbox that feeds them."""

    uri: str = Field(
        description="Database of the outbox: sqlite:///path or postgresql://user:password@host/db."
    )
    model: str = Field(
        default="", description="Model to which the database belongs; empty: whichever."
    )
    services: str = Field(
        default="",
        description="Apprise URLs of the services to notify, with blanks between them: "
        "https://appriseit.com/services/.",
    )
    reminder_hours: int = Field(
        default=24,
        ge=1,
        description="Hours after which an open incident is notified again; each later reminder "
        "waits twice as long.",
    )
    dagster_url: str = Field(
        default="", description="Address of Dagster's UI, for links to runs; empty: no links."
    )

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
