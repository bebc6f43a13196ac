"""The endpoint: where models are served."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from mlschool_dagster.targets.base import EndpointTarget
from mlschool_dagster.targets.local import LocalTarget


class LocalEndpoint(dg.ConfigurableResource):  # type: ignore[type-arg]
    """An inference server on this machine."""

    home: str = Field(description="Folder for the server's state, its log and served versions.")
    name: str = Field(description="Name of the endpoint, kept with every capture.")
    host: str = Field(description="Address on which the server listens.")
    port: int = Field(description="Port on which the server listens.")
    capture_store: str = Field(description="Capture store in which the server keeps its answers.")

    def target(self) -> EndpointTarget:
        """The endpoint as a deployment target."""
        return LocalTarget(
            home=Path(self.home),
            store_uri=self.capture_store,
            name=self.name,
            host=self.host,
            port=self.port,
        )

    @property
    def versions(self) -> Path:
        """Folder into which registered versions are fetched before they serve."""
        return Path(self.home) / "versions"
