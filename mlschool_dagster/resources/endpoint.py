"""The endpoint: where models are served."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from mlschool_dagster.targets.base import EndpointTarget
    from mlschool_dagster.targets.client import EndpointClient


class LocalEndpoint(dg.ConfigurableResource):  # type: ignore[type-arg]
    """An inference server on this machine."""

    home: str = Field(description="Folder for the state and the log of the server.")
    name: str = Field(description="Name of the endpoint, kept with every capture.")
    host: str = Field(description="Address on which the server listens.")
    port: int = Field(description="Port on which the server listens.")
    capture_store: str = Field(description="Capture store in which the server keeps its answers.")

    def target(self) -> "EndpointTarget":
        """The endpoint as a deployment target."""
        from mlschool_dagster.targets.local import LocalTarget

        return LocalTarget(
            home=Path(self.home),
            store_uri=self.capture_store,
            name=self.name,
            host=self.host,
            port=self.port,
        )

    def client(self, url: str = "") -> "EndpointClient":
        """A client of the endpoint at `url`, of this one if it is empty."""
        from mlschool_dagster.targets.client import EndpointClient

        return EndpointClient(self.name, url or f"http://{self.host}:{self.port}")
