"""What monitoring found, window by window, opened for as long as it is used."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from mlschool_dagster.monitoring.metrics import MetricsHistory


class History(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The history of metrics."""

    uri: str = Field(
        description="Database that keeps it: sqlite:///path or postgresql://user:password@host/db."
    )

    @contextmanager
    def metrics(self) -> Iterator[MetricsHistory]:
        """The history of metrics, closed with the block.

        Raises:
            UserError: the database cannot be used.
        """
        from mlschool_dagster.monitoring.history import open_history

        history = open_history(self.uri)
        try:
            yield history
        finally:
            history.close()
