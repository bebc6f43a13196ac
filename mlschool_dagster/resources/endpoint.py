"""The endpoint: where models are served."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from mlschool_dagster.deployment.client import EndpointClient
    from mlschool_dagster.deployment.endpoint import Endpoint
    from mlschool_dagster.serving.server_config import ServerConfig

CALL_SECONDS = 30.0
"""How long each wait for an answer may take."""
PATIENCE_SECONDS = 10.0
"""How long an endpoint may take to tell its metrics."""


class LocalEndpointResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """An inference server on this machine."""

    home: str = Field(description="Folder for the state and the log of the server.")
    name: str = Field(description="Name of the endpoint, kept with every capture.")
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

    def target(self) -> "Endpoint":
        """The endpoint as a deployment target."""
        from mlschool_dagster.deployment.local import LocalEndpoint

        return LocalEndpoint(self._config(), self.url or None)

    def client(self, url: str = "") -> "EndpointClient":
        """A client of the endpoint at `url`, which is not told our token; empty: of this one."""
        from mlschool_dagster.deployment.client import EndpointClient

        if url:
            return EndpointClient(self.name, url)
        return self._own_client()

    def exposition(self) -> str | None:
        """What the endpoint tells Prometheus; None if it does not answer."""
        return self._own_client(PATIENCE_SECONDS).text("/metrics")

    def _own_client(self, timeout: float = CALL_SECONDS) -> "EndpointClient":
        from mlschool_dagster.deployment.client import EndpointClient

        address = self.url or self._config().url
        return EndpointClient(self.name, address, timeout, self.token or None)

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
