"""Resource for the history database: metrics, promotion ledger and deployment ledger."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.deployment.ledger import DeploymentEntry, DeploymentLedger
    from mlschool_dagster.monitoring.metrics_history import MetricsHistory
    from mlschool_dagster.promotion.ledger import PromotionLedger


class History(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Connection to the history of metrics and to the ledgers."""

    uri: str = setting("history")

    model: str = Field(
        default="", description="Model to which the database belongs; empty: whichever."
    )

    def _claim(self) -> None:
        from mlschool_dagster.database import claim

        if self.model:
            claim(self.uri, self.model)

    @contextmanager
    def metrics(self) -> "Iterator[MetricsHistory]":
        """The history of metrics, closed with the block.

        Raises:
            UserError: the database cannot be used, or belongs to another model.
        """
        from mlschool_dagster.monitoring.metrics_history import MetricsHistory

        self._claim()
        with closing(MetricsHistory(self.uri)) as history:
            yield history

    @contextmanager
    def promotions(self) -> "Iterator[PromotionLedger]":
        """The promotion ledger, closed with the block.

        Raises:
            UserError: the database cannot be used, or belongs to another model.
        """
        from mlschool_dagster.promotion.ledger import open_ledger

        self._claim()
        with closing(open_ledger(self.uri)) as ledger:
            yield ledger

    @contextmanager
    def deployments(self, endpoint: str) -> "Iterator[DeploymentLedger]":
        """The deployment ledger of the endpoint of that name, closed with the block.

        Raises:
            UserError: the database cannot be used, or belongs to another model.
        """
        from mlschool_dagster.deployment.ledger import open_ledger

        self._claim()
        with closing(open_ledger(self.uri, endpoint)) as ledger:
            yield ledger

    def deployment_entries(self, endpoint: str) -> "list[DeploymentEntry]":
        """Every entry of the deployment ledger about the endpoint of that name, in order.

        Raises:
            UserError: the database cannot be used, or belongs to another model.
        """
        with self.deployments(endpoint) as ledger:
            return ledger.entries()
