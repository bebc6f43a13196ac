"""The endpoint: where models are served."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

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
    host: str = Field(description="Address on which the server listens.")
    port: int = Field(description="Port on which the server listens.")
    capture_store: str = Field(description="Capture store in which the server keeps its answers.")
    workers: int = Field(default=1, description="Processes of the server that answer.")
    spill_bytes: int = Field(
        default=256 * 1024**2,
        description="Bytes of captures that the server keeps while the store is unavailable.",
    )
    hosts: list[str] = Field(
        default=[],
        description="Names by which requests may call the server, beside its address and those of "
        "this machine.",
    )
    connections: int = Field(default=512, description="Connections of each of its processes.")
    keep_alive_seconds: int = Field(
        default=620, description="How long a connection may be silent between two requests."
    )
    preconnect_seconds: int = Field(
        default=620, description="How long a connection may be silent before its first request."
    )
    token: str = Field(default="", description="What clients must present; empty: nothing.")
    url: str = Field(
        default="",
        description="Address of a server that something else starts and keeps, which follows the "
        "same folder; empty: the platform starts its own.",
    )

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
            spill_bytes=self.spill_bytes,
            hosts=tuple(self.hosts),
            connections=self.connections,
            keep_alive_seconds=self.keep_alive_seconds,
            preconnect_seconds=self.preconnect_seconds,
            token=self.token or None,
        )
