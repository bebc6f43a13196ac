"""The endpoint: where models are served."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.deployment.endpoint import Endpoint
    from mlschool_dagster.serving.server_config import ServerConfig


class EndpointResource(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """The endpoint of this deployment of the platform, wherever it lives."""

    name: str = Field(description="Name of the endpoint, kept with every capture.")

    @abstractmethod
    def connect(self) -> "Endpoint":
        """The endpoint; nothing is contacted before one of its methods is called."""


class LocalEndpointResource(EndpointResource):
    """An inference server on this machine."""

    home: str = Field(description="Folder for the state and the log of the server.")
    host: str = setting("endpoint_host")
    port: int = setting("endpoint_port")
    capture_store: str = setting("capture_store")
    workers: int = setting("endpoint_workers")
    spill_megabytes: int = setting("spill_megabytes")
    hosts: list[str] = setting("hosts", [])
    connections: int = setting("endpoint_connections")
    keep_alive_seconds: int = setting("endpoint_keep_alive")
    preconnect_seconds: int = setting("endpoint_preconnect")
    token: str = setting("endpoint_token")
    url: str = setting("endpoint_url")

    def connect(self) -> "Endpoint":
        """See `EndpointResource.connect`."""
        from mlschool_dagster.deployment.local import LocalEndpoint

        return LocalEndpoint(self._config(), self.url or None)

    def _config(self) -> "ServerConfig":
        from mlschool_dagster.serving.server_config import ServerConfig

        return ServerConfig(
            home=Path(self.home),
            store_uri=self.capture_store,
            name=self.name,
            host=self.host,
            port=self.port,
            workers=self.workers,
            spill_bytes=self.spill_megabytes * 1024**2,
            hosts=tuple(self.hosts),
            connections=self.connections,
            keep_alive_seconds=self.keep_alive_seconds,
            preconnect_seconds=self.preconnect_seconds,
            token=self.token or None,
        )
